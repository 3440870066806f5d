"""Recurrent layers as torch modules: an nn.LSTM, nn.GRU or nn.RNN wherever one computes it.

``LSTM``, ``GRU`` and ``RNN`` are torch's own modules, with torch's parameter names, called the way
Keras calls its layer; ``LoopRNN`` has the same names and runs any cell. Both offer
``run_sequence``, the door to the engines, which asks at every call whether the native kernel may
run; all that Keras adds around it (masks, merge, states) is ``recurrent_forward``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.functional.activation_labels import activation_label
from keras2torch_birnn.functional.activations import activation
from keras2torch_birnn.functional.parameters import to_parameter
from keras2torch_birnn.rnn.call import Asked, Result, State
from keras2torch_birnn.rnn.checked import check_dtypes, check_tensor
from keras2torch_birnn.rnn.engine_choice import (
    Wish,
    choose,
    torch_engine,
    wish,
)
from keras2torch_birnn.rnn.engines import KERNELS, Recurrence, merged, run, run_masked
from keras2torch_birnn.rnn.loop import WEIGHT_NAMES, Cell, DropoutRates, Weights
from keras2torch_birnn.rnn.masks import reverse
from keras2torch_birnn.rnn.native.library import (
    NativeCell,
    missing,
    native_cell,
    say_once_if_missing,
)
from keras2torch_birnn.rnn.parameters import torch_parameters
from keras2torch_birnn.schema import CELL_GATES
from keras2torch_birnn.spec import LayerSpec

# What a layer gives: a tensor, or a tuple of tensors (merge_mode None, return_state).
Output: TypeAlias = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Plan:
    """How one recurrent layer is called, in Keras' words; the same for every engine.

    ``rules``: what stands at masked steps, per direction. ``against_time``: the (first) direction
    reads from the end, and what comes out is in the order of reading.
    """

    rules: tuple[str, ...]
    merge_mode: str | None = None
    return_sequences: bool = False
    return_state: bool = False
    against_time: bool = False
    stateful: bool = False


class Sequences(Protocol):
    """What every engine's module offers to ``recurrent_forward``."""

    plan: Plan
    carried: tuple[State, ...] | None

    def run_sequence(self, asked: Asked) -> Result:
        """Outputs (B, T, ...) in the order of time and final states, one per direction."""
        ...


def recurrent_forward(
    module: Sequences,
    x: Tensor,
    mask: Tensor | None = None,
    initial_state: Sequence[Tensor] | None = None,
) -> Output:
    """Call a recurrent layer as Keras does.

    x: (B, T, ...); mask: (B, T), true where a step counts; initial_state: Keras' order, forward
    states first. Returns the (merged) output, then the states if the layer returns them.

    Raises:
        ArgumentTypeError: no tensor, or not of the dtype of the weights.
    """
    check_tensor("input", x, module)
    if mask is not None:
        check_tensor("mask", mask, torch.bool)
    plan = module.plan
    if plan.against_time:
        x, mask = x.flip(1), None if mask is None else mask.flip(1)
    start = _carried(module, len(x)) if plan.stateful else None
    if initial_state is not None:
        for state in initial_state:
            check_tensor("initial_state", state, module)
        each = len(initial_state) // len(plan.rules)
        start = tuple(
            tuple(initial_state[i * each : (i + 1) * each]) for i in range(len(plan.rules))
        )
    # Of single steps the merge is cheap, so the kernel need not do it.
    merge = plan.merge_mode if plan.return_sequences else None
    asked = Asked(x, None, start, merge, plan.stateful or plan.return_state)
    if mask is None:
        outputs, states = module.run_sequence(asked)
    else:
        outputs, states = run_masked(module.run_sequence, asked, mask, plan.rules)
    if plan.stateful:
        module.carried = tuple(tuple(s.detach() for s in state) for state in states)
    if not plan.return_sequences:
        # The last step that each direction reads: T - 1 forward, 0 backward.
        last = tuple(out[:, -1 if d == 0 else 0] for d, out in enumerate(outputs))
        outputs = merged(last, plan.merge_mode)
    tail = tuple(s for state in states for s in state) if plan.return_state else ()
    result = (*outputs, *tail)
    return result[0] if len(result) == 1 else result


def _carried(module: Sequences, rows: int) -> tuple[State, ...] | None:
    """The states of the batch before, which are those of as many rows."""
    before = module.carried[0][0].shape[0] if module.carried else rows
    if before != rows:
        raise UsageError(
            f"a stateful layer carries the states of {before} rows, this batch has {rows}",
            "call k2t.reset_states(model) before a batch of another size",
        )
    return module.carried


# ---- modules ------------------------------------------------------------------------------------


def _weights(module: nn.Module, direction: int) -> Weights:
    """One direction's weights of a module with torch's names."""
    own, names = module._parameters, _NAMES[direction]  # its own way to a parameter is a slow one
    ih, hh, bias_ih, bias_hh = names
    found: list[Any]
    try:
        second = module._buffers[bias_hh] if bias_hh in module._buffers else own[bias_hh]
        found = [own[ih], own[hh], own[bias_ih], second]
    except KeyError:  # a parametrization stands there, or there is no bias
        found = [getattr(module, name, None) for name in names]
    return Weights(*found)


_NAMES = tuple(
    tuple(f"{name}{suffix}" for name in WEIGHT_NAMES) for suffix in ("_l0", "_l0_reverse")
)


def recurrence(module: LSTM | GRU | RNN | LoopRNN) -> Recurrence:
    """The module as the engines see it."""
    return Recurrence(
        module.cell,
        tuple([_weights(module, d) for d in range(len(module.plan.rules))]),
        module.kernel,
        module.native,
        module.dropout_rates,
        module.training,
        module.engine,
    )


def _run(module: LSTM | GRU | RNN | LoopRNN, asked: Asked) -> Result:
    """See ``Sequences``."""
    layer = recurrence(module)
    weight = layer.weights[0].ih
    if asked.start or asked.x.dtype is not weight.dtype:
        check_dtypes(asked.x, asked.start, weight, "initial_state")
    return run(layer, asked)


def _save_in_order(module: Any, destination: Any, prefix: str, keep_vars: bool) -> None:
    """Write a state_dict in the order of torch's own layer, though biases may be buffers."""
    super(type(module), module)._save_to_state_dict(destination, prefix, keep_vars)
    for name in module._flat_weights_names:
        if f"{prefix}{name}" in destination:
            destination.move_to_end(f"{prefix}{name}")


def _extra_repr(module: Any) -> str:
    """Torch's own description, then Keras' options."""
    parts = [str(super(type(module), module).extra_repr()), *shown_options(module.plan)]
    return ", ".join(part for part in parts if part)


# ``forward`` is Any: the call is Keras' on purpose, not torch's.


class LSTM(nn.LSTM):
    """An ``nn.LSTM``, called as Keras calls its LSTM, or a Bidirectional of two alike."""

    plan: Plan
    cell: Cell
    dropout_rates: DropoutRates
    native: NativeCell | None
    engine: Wish | None = None
    carried: tuple[State, ...] | None = None
    run_sequence = _run
    forward: Any = recurrent_forward
    extra_repr = _extra_repr
    _save_to_state_dict: Any = _save_in_order

    @property
    def kernel(self) -> Any:
        """Torch's function for it."""
        return torch.lstm


class GRU(nn.GRU):
    """An ``nn.GRU``, called as Keras calls its GRU, or a Bidirectional of two alike."""

    plan: Plan
    cell: Cell
    dropout_rates: DropoutRates
    native: NativeCell | None
    engine: Wish | None = None
    carried: tuple[State, ...] | None = None
    run_sequence = _run
    forward: Any = recurrent_forward
    extra_repr = _extra_repr
    _save_to_state_dict: Any = _save_in_order

    @property
    def kernel(self) -> Any:
        """Torch's function for it."""
        return torch.gru


class RNN(nn.RNN):
    """An ``nn.RNN``, called as Keras calls its SimpleRNN, or a Bidirectional of two alike."""

    plan: Plan
    cell: Cell
    dropout_rates: DropoutRates
    native: NativeCell | None
    engine: Wish | None = None
    carried: tuple[State, ...] | None = None
    run_sequence = _run
    forward: Any = recurrent_forward
    extra_repr = _extra_repr
    _save_to_state_dict: Any = _save_in_order

    @property
    def kernel(self) -> Any:
        """Torch's function for the nonlinearity."""
        return KERNELS["SimpleRNN", self.nonlinearity]


class LoopRNN(nn.Module):
    """Any cell, by the loop. Torch's names; a GRU that resets before its product has no bias_hh."""

    plan: Plan
    cell: Cell
    dropout_rates: DropoutRates
    kernel: None = None
    native: NativeCell | None
    engine: Wish | None = None
    carried: tuple[State, ...] | None = None
    run_sequence = _run
    forward: Any = recurrent_forward

    def __init__(self, shown: str) -> None:
        super().__init__()
        self.shown = shown

    def extra_repr(self) -> str:
        """The cell, then Keras' options."""
        return ", ".join((self.shown, *shown_options(self.plan)))


class BidirectionalPair(nn.Module):
    """Two recurrent modules that differ (units, class, activation, bias), one per direction."""

    carried: tuple[State, ...] | None = None
    forward: Any = recurrent_forward

    def __init__(self, forward_layer: Any, backward_layer: Any, plan: Plan) -> None:
        super().__init__()
        self.forward_layer = forward_layer
        self.backward_layer = backward_layer
        self.plan = plan

    def run_sequence(self, asked: Asked) -> Result:
        """See ``Sequences``."""
        x, lengths, start, merge, _ = asked
        first, second = ((start[0],), (start[1],)) if start else (None, None)
        (ahead,), forward_states = self.forward_layer.run_sequence(Asked(x, lengths, first))
        turned = Asked(reverse(x, lengths), lengths, second)
        (back,), backward_states = self.backward_layer.run_sequence(turned)
        outputs = merged((ahead, reverse(back, lengths)), merge)
        return outputs, (*forward_states, *backward_states)

    def extra_repr(self) -> str:
        """Keras' options."""
        return ", ".join(shown_options(self.plan))


def shown_options(plan: Plan) -> list[str]:
    """Keras' options, for a person."""
    parts = [f"return_sequences={plan.return_sequences}"]
    if len(plan.rules) == 2:
        parts.insert(0, f"merge_mode={plan.merge_mode!r}")
    return parts + [f"{key}=True" for key in ("return_state", "stateful") if getattr(plan, key)]


# ---- LayerSpec -> module -----------------------------------------------------------------------


def plan_of(halves: Sequence[LayerSpec], merge_mode: str | None) -> Plan:
    """How one layer, or the two halves of a Bidirectional, are called."""
    config = halves[0].config
    return Plan(
        rules=tuple(half.config["masked_output"] for half in halves),
        merge_mode=merge_mode,
        return_sequences=config["return_sequences"],
        return_state=config["return_state"],
        against_time=config["go_backwards"],
        stateful=config["stateful"],
    )


_FUSED: dict[str, Any] = {"LSTM": LSTM, "GRU": GRU, "SimpleRNN": RNN}


def torch_module(halves: Sequence[LayerSpec], plan: Plan) -> nn.Module:
    """The module of an LSTM, a GRU or a SimpleRNN, or of two that are alike, with parameters."""
    layer, config = halves[0], halves[0].config
    parameters: dict[str, Any] = {}
    for half, suffix in zip(halves, ("", "_reverse"), strict=False):
        parameters |= torch_parameters(half, suffix)
    width, units = parameters["weight_ih_l0"].shape[1], config["units"]
    module: Any
    choose(layer)  # refuses here what K2T_ENGINE cannot have
    if wish() in ("auto", "native"):
        say_once_if_missing()
    if torch_engine(layer).engine == "fused":
        more = {"nonlinearity": config["activation"]} if layer.class_name == "SimpleRNN" else {}
        module = _FUSED[layer.class_name](
            width,
            units,
            bias=config["use_bias"],
            batch_first=True,
            bidirectional=len(halves) == 2,
            device="meta",
            **more,
        )
    else:
        module = LoopRNN(f"{layer.class_name}, {width}, {units}, {_functions(layer)}")
        for name in parameters:
            module.register_parameter(name, None)
    module.plan = plan
    module.cell = _cell(layer)
    module.native = None if missing() else native_cell(layer)
    module.dropout_rates = DropoutRates(
        config["dropout"], config["recurrent_dropout"], config["implementation"] != 2
    )
    added = [name for name, _ in module.named_parameters() if name not in parameters]
    for name, array in parameters.items():
        setattr(module, name, to_parameter(array))
    zeros = np.zeros(CELL_GATES[layer.class_name] * units, parameters["weight_ih_l0"].dtype)
    for name in added:
        _fix(module, name, to_parameter(zeros.copy()).data)
    for half, suffix in zip(halves, ("_l0", "_l0_reverse"), strict=False):
        if not half.config.get("trainable", True):  # Keras 3 can freeze one half alone
            for name in parameters:
                if name.endswith(suffix):
                    getattr(module, name).requires_grad_(False)
    return cast(nn.Module, module)


def _fix(module: Any, name: str, value: Tensor) -> None:
    """Make torch's second bias, which Keras does not have, a buffer: no optimizer ever sees it."""
    delattr(module, name)
    module.register_buffer(name, value)
    setattr(module, name, value)  # the way that tells torch's list of its weights


def _cell(layer: LayerSpec) -> Cell:
    kind = layer.class_name
    if kind == "GRU" and not layer.config["reset_after"]:
        kind = "GRU before"
    gate = layer.config.get("recurrent_activation", "linear")
    return Cell(kind, activation(layer.config["activation"]), activation(gate))


def _functions(layer: LayerSpec) -> str:
    config = layer.config
    names = ("activation", "recurrent_activation", "reset_after")
    return ", ".join(
        f"{n}={activation_label(config[n]) if n != 'reset_after' else config[n]}"
        for n in names
        if n in config
    )
