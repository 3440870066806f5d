"""Converted recurrent layers as torch modules: an nn.LSTM, nn.GRU or nn.RNN wherever one is exact.

``LSTM``, ``GRU`` and ``RNN`` are torch's own modules, with torch's parameter names, called the way
Keras calls its layer; ``LoopRNN`` has the same names and holds any cell. ``recurrent_forward`` does
what Keras adds around the recurrence (masks, merge, states); ``run_sequence`` runs an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import ArgumentValueError, UsageError
from keras2torch_birnn.rnn.checks import check_dtypes, check_states, check_tensor
from keras2torch_birnn.rnn.engines import (
    EngineRequest,
)
from keras2torch_birnn.rnn.engines.select import run
from keras2torch_birnn.rnn.layer import (
    WEIGHT_NAMES,
    Cell,
    DropoutRates,
    RnnCall,
    RnnLayer,
    RnnResult,
    State,
)
from keras2torch_birnn.rnn.masks import reverse, run_masked
from keras2torch_birnn.rnn.native.codes import ReducedPrecision
from keras2torch_birnn.schema.merge_modes import merge_outputs
from keras2torch_birnn.spec import LayerSpec

# A tensor, or a tuple of tensors (merge_mode None, return_state).
Output: TypeAlias = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Plan:
    """Keras' options of one recurrent layer; the same for every engine.

    rules: the output at masked steps, per direction. against_time: the (first) direction reads from
    the end, and the output is in the order of reading.
    """

    rules: tuple[str, ...]
    merge_mode: str | None = None
    return_sequences: bool = False
    return_state: bool = False
    against_time: bool = False
    stateful: bool = False


class SequenceModule(Protocol):
    """The part of a recurrent module that ``recurrent_forward`` uses."""

    plan: Plan
    carried: tuple[State, ...] | None

    def run_sequence(self, call: RnnCall) -> RnnResult:
        """Return outputs (B, T, ...) in the order of time and final states, one per direction."""
        ...


def recurrent_forward(
    module: SequenceModule,
    x: Tensor,
    mask: Tensor | None = None,
    initial_state: Sequence[Tensor] | None = None,
) -> Output:
    """Call a recurrent layer as Keras does.

    x: (B, T, ...); mask: (B, T), true at valid steps; initial_state: in Keras' order, forward
    states first. Returns the (merged) output, then the states if the layer returns them.

    Raises:
        ArgumentTypeError: no tensor, or not of the dtype of the weights.
        ArgumentValueError: a shape does not fit, or there is no step to return the output of.
    """
    check_tensor("input", x, module)
    if mask is not None:
        check_tensor("mask", mask, torch.bool)
    plan = module.plan
    if plan.against_time:
        x, mask = x.flip(1), None if mask is None else mask.flip(1)
    initial = _carried(module, len(x)) if plan.stateful else None
    if initial_state is not None:
        initial = _by_direction(module, initial_state)
    # Of single steps the merge is cheap, so the kernel need not do it.
    merge = plan.merge_mode if plan.return_sequences else None
    call = RnnCall(x, None, initial, merge, plan.stateful or plan.return_state)
    if mask is None:
        outputs, states = module.run_sequence(call)
    else:
        outputs, states = run_masked(module.run_sequence, call, mask, plan.rules)
    if not plan.return_sequences:
        if outputs[0].shape[1] == 0:
            raise ArgumentValueError("an input of no steps has no last output")
        # The last step that each direction reads: T - 1 forward, 0 backward.
        outputs = tuple(out[:, -1 if d == 0 else 0] for d, out in enumerate(outputs))
    outputs = merge_outputs(outputs, plan.merge_mode)
    if plan.stateful:
        module.carried = tuple(tuple(s.detach() for s in state) for state in states)
    tail = tuple(s for state in states for s in state) if plan.return_state else ()
    result = (*outputs, *tail)
    return result[0] if len(result) == 1 else result


def _carried(module: SequenceModule, rows: int) -> tuple[State, ...] | None:
    """Return the states of the batch before; refuse another number of rows.

    Raises:
        UsageError: it had more or fewer.
    """
    before = module.carried[0][0].shape[0] if module.carried else rows
    if before != rows:
        raise UsageError(
            f"a stateful layer carries the states of {before} rows, this batch has {rows}",
            "call k2t.reset_states(model) before a batch of another size",
        )
    return module.carried


def _by_direction(module: SequenceModule, states: Sequence[Tensor]) -> tuple[State, ...]:
    """Split initial states into those of each direction.

    Raises:
        ArgumentTypeError: one is no tensor. ArgumentValueError: the directions do not get as many.
    """
    for state in states:
        check_tensor("initial_state", state, module)
    directions = len(module.plan.rules)
    each, rest = divmod(len(states), directions)
    if rest:
        raise ArgumentValueError(
            f"as many states for each of {directions} directions are expected, found {len(states)}",
            place="initial_state",
        )
    return tuple(tuple(states[d * each : (d + 1) * each]) for d in range(directions))


# ---- modules ------------------------------------------------------------------------------------


class AnyRecurrent:
    """Base of the modules of recurrent layers of any kind, beside ``nn.Module``."""

    plan: Plan
    carried: tuple[State, ...] | None = None
    # Any: the call is Keras' on purpose, not torch's.
    forward: Any = recurrent_forward

    def extra_repr(self) -> str:
        """Return Keras' options."""
        return ", ".join(shown_options(self.plan))


def parameter_names(directions: int, layer: int = 0) -> tuple[str, ...]:
    """Return torch's names of a layer's parameters, four for each direction."""
    suffixes = ("", "_reverse")[:directions]
    return tuple(f"{name}_l{layer}{suffix}" for suffix in suffixes for name in WEIGHT_NAMES)


_NAMES = tuple(map(parameter_names, range(3)))  # by the number of directions


def find_parameters(module: nn.Module, names: Sequence[str]) -> list[Tensor | None]:
    """Return the parameters of these names, None for an absent bias; a parametrization's value."""
    own: Any = module._parameters  # nn.Module's attribute access is slow
    buffers: Any = module._buffers
    return [
        own[n] if n in own else buffers[n] if n in buffers else getattr(module, n, None)
        for n in names
    ]


class RecurrentModule(AnyRecurrent):
    """The part that the modules of one converted cell share; a base beside one of ``nn.Module``."""

    plan: Plan
    cell: Cell
    dropout_rates: DropoutRates
    engine: EngineRequest | None = None
    precision: ReducedPrecision | None = None

    def rnn_layer(self) -> RnnLayer:
        """Return the layer as the engines see it."""
        module = cast(Any, self)
        return RnnLayer(
            self.cell,
            find_parameters(module, _NAMES[len(self.plan.rules)]),
            self.dropout_rates,
            module.training,
            self.engine,
            self.precision,
        )

    def rnn_layers(self) -> tuple[RnnLayer, ...]:
        """Return the one layer, as a stack returns its layers."""
        return (self.rnn_layer(),)

    def run_sequence(self, call: RnnCall) -> RnnResult:
        """Run the layer by an engine.

        Raises:
            ArgumentTypeError, ArgumentValueError: the input or a state does not fit the weights.
        """
        layer = self.rnn_layer()
        weight = layer.get_weight_ih()
        if call.initial_state or call.x.dtype is not weight.dtype:
            check_dtypes(call.x, call.initial_state, weight, "initial_state")
        if call.initial_state:
            shape = (call.x.shape[0], layer.get_weight_hh().shape[1])
            check_states(call.initial_state, (shape,) * layer.state_count())
        return run(layer, call)


class _TorchModule(RecurrentModule):
    """A subclass of torch's layer: its description and state_dict stay torch's."""

    def extra_repr(self) -> str:
        """Return torch's own description, then Keras' options."""
        described = nn.RNNBase.extra_repr(cast(Any, self))
        parts = [described, *shown_options(self.plan), *_shown_precision(self)]
        return ", ".join(part for part in parts if part)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Write a state_dict in the order of torch's own layer, though biases may be buffers."""
        inherited: Any = super()
        inherited._save_to_state_dict(destination, prefix, keep_vars)
        for name in getattr(self, "_flat_weights_names", ()):
            if f"{prefix}{name}" in destination:
                destination.move_to_end(f"{prefix}{name}")


class LSTM(_TorchModule, nn.LSTM):
    """An ``nn.LSTM``, called as Keras calls its LSTM, or a Bidirectional of two alike."""


class GRU(_TorchModule, nn.GRU):
    """An ``nn.GRU``, called as Keras calls its GRU, or a Bidirectional of two alike."""


class RNN(_TorchModule, nn.RNN):
    """An ``nn.RNN``, called as Keras calls its SimpleRNN, or a Bidirectional of two alike."""


class LoopRNN(RecurrentModule, nn.Module):
    """Any cell. Torch's names; a GRU that resets before its product has no bias_hh."""

    def __init__(self, shown: str) -> None:
        super().__init__()
        self.shown = shown

    def extra_repr(self) -> str:
        """Return the cell, then Keras' options."""
        return ", ".join((self.shown, *shown_options(self.plan), *_shown_precision(self)))


class BidirectionalPair(AnyRecurrent, nn.Module):
    """Two recurrent modules that differ (units, class, activation, bias), one per direction."""

    def __init__(self, forward_layer: Any, backward_layer: Any, plan: Plan) -> None:
        super().__init__()
        self.forward_layer = forward_layer
        self.backward_layer = backward_layer
        self.plan = plan

    def run_sequence(self, call: RnnCall) -> RnnResult:
        """Run the forward, then the backward module."""
        x, lengths, initial = call.x, call.lengths, call.initial_state
        first, second = ((initial[0],), (initial[1],)) if initial else (None, None)
        ahead_call = RnnCall(x, lengths, first, return_state=call.return_state)
        (ahead,), forward_states = self.forward_layer.run_sequence(ahead_call)
        backward_call = RnnCall(
            reverse(x, lengths), lengths, second, return_state=call.return_state
        )
        (back,), backward_states = self.backward_layer.run_sequence(backward_call)
        return (ahead, reverse(back, lengths)), (*forward_states, *backward_states)


def shown_options(plan: Plan) -> list[str]:
    """Return Keras' options in words."""
    parts = [f"return_sequences={plan.return_sequences}"]
    if len(plan.rules) == 2:
        parts.insert(0, f"merge_mode={plan.merge_mode!r}")
    return parts + [f"{key}=True" for key in ("return_state", "stateful") if getattr(plan, key)]


def _shown_precision(module: RecurrentModule) -> list[str]:
    return [f"precision={module.precision!r}"] if module.precision else []


def plan_of(halves: Sequence[LayerSpec], merge_mode: str | None) -> Plan:
    """Return the options of one layer, or of the two halves of a Bidirectional."""
    config = halves[0].config
    return Plan(
        rules=tuple(half.semantics["masked_output"] for half in halves),
        merge_mode=merge_mode,
        return_sequences=config["return_sequences"],
        return_state=config["return_state"],
        against_time=config["go_backwards"],
        stateful=config["stateful"],
    )
