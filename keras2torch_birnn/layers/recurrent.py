"""Builders of recurrent layers, whose modules are in ``rnn``, Bidirectional and TimeDistributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.layers.core import loop_mask
from keras2torch_birnn.layers.registry import (
    ALONE,
    Around,
    Converter,
    MaskFlow,
    around,
    convert_layer,
    mask_flow,
)
from keras2torch_birnn.rnn.cell_kind import (
    CELL_KINDS,
    can_share_module,
    kind_of,
    layer_of_cell,
    unwrap,
)
from keras2torch_birnn.rnn.custom_cell import CustomRNN, StackedRNN
from keras2torch_birnn.rnn.engines import check_no_kernel, requested_engine, static_engine
from keras2torch_birnn.rnn.layer import Cell, DropoutRates
from keras2torch_birnn.rnn.modules import (
    GRU,
    LSTM,
    RNN,
    BidirectionalPair,
    LoopRNN,
    Plan,
    plan_of,
)
from keras2torch_birnn.rnn.native.library import warn_once_if_missing
from keras2torch_birnn.rnn.parameters import to_parameter, torch_parameters
from keras2torch_birnn.schema import CELL_GATES, CONV_LSTMS, cells_in_order
from keras2torch_birnn.schema.core import activation_label
from keras2torch_birnn.schema.custom_cells import is_custom_cell, states_of
from keras2torch_birnn.spec import LayerSpec, map_structure

# ---- LSTM, GRU and SimpleRNN --------------------------------------------------------------------

_TORCH_MODULES: Mapping[str, Any] = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}


def torch_module(halves: Sequence[LayerSpec], plan: Plan) -> nn.Module:
    """Build the module of an LSTM, a GRU or a SimpleRNN, or of two that can share one.

    Raises:
        UsageError: the engine of ``K2T_ENGINE`` cannot run it.
    """
    layer, config = halves[0], halves[0].config
    kind = CELL_KINDS[kind_of(layer)]
    gate = config.get("recurrent_activation", "linear")
    cell = Cell.of(kind_of(layer), config["activation"], gate)
    parameters: dict[str, Any] = {}
    for half, suffix in zip(halves, ("", "_reverse"), strict=False):
        parameters |= torch_parameters(half, suffix)
    width, units = parameters["weight_ih_l0"].shape[1], config["units"]
    module: Any
    static_engine(layer)  # for its refusal
    if requested_engine() in ("auto", "native"):
        warn_once_if_missing()
    if cell.kernel is not None:
        more = {"nonlinearity": config["activation"]} if layer.class_name == "SimpleRNN" else {}
        module = _TORCH_MODULES[kind.torch_name](
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
    module.plan, module.cell = plan, cell
    module.dropout_rates = DropoutRates(
        config["dropout"], config["recurrent_dropout"], config["implementation"] != 2
    )
    added = [name for name, _ in module.named_parameters() if name not in parameters]
    for name, array in parameters.items():
        setattr(module, name, to_parameter(array))
    zeros = np.zeros(kind.gates * units, parameters["weight_ih_l0"].dtype)
    for name in added:
        _make_buffer(module, name, to_parameter(zeros.copy()).data)
    for half, suffix in zip(halves, ("_l0", "_l0_reverse"), strict=False):
        if not half.config.get("trainable", True):  # Keras 3 can freeze one half alone
            for name in parameters:
                if name.endswith(suffix):
                    getattr(module, name).requires_grad_(False)
    return cast(nn.Module, module)


def _make_buffer(module: Any, name: str, value: Tensor) -> None:
    """Make torch's second bias, which Keras does not have, a buffer, which no optimizer sees."""
    delattr(module, name)
    module.register_buffer(name, value)
    setattr(module, name, value)  # updates torch's list of its weights


def _functions(layer: LayerSpec) -> str:
    config = layer.config
    names = ("activation", "recurrent_activation", "reset_after")
    return ", ".join(
        f"{n}={activation_label(config[n]) if n != 'reset_after' else config[n]}"
        for n in names
        if n in config
    )


# ---- layers of one direction, and pairs ---------------------------------------------------------


def _one_way(layer: LayerSpec, plan: Plan) -> nn.Module:
    """Build one direction of any recurrent layer."""
    layer = unwrap(layer)
    if layer.class_name in CELL_GATES:
        return torch_module((layer,), plan)
    if layer.class_name in CONV_LSTMS:
        from keras2torch_birnn.layers import convolution  # a page that other layers do not need

        return convolution.one_direction(layer, plan)
    cell = layer.parts["cell"]
    if is_custom_cell(cell):
        return _custom(cell, plan)
    order = states_of(cell)
    modules = []
    for number, one in enumerate(cells_in_order(cell)):
        if is_custom_cell(one):
            shows_state = number == order[0][0] and plan.rules == ("previous_first_state",)
            modules.append(_custom(one, plan if shows_state else Plan(("zeros",))))
        else:
            alone = layer_of_cell(one, layer)
            modules.append(torch_module((alone,), plan_of((alone,), None)))
        if not cell.config.get("trainable", True):
            modules[-1].requires_grad_(False)
    return StackedRNN(modules, order, plan)


def _custom(cell: LayerSpec, plan: Plan) -> nn.Module:
    """Build the loop over a plugin's cell.

    Raises:
        UsageError: K2T_ENGINE asks for a kernel.
    """
    check_no_kernel(cell, "a custom cell")
    return CustomRNN(convert_layer(cell), replace(cell, weights={}), plan)


def recurrent(layer: LayerSpec) -> nn.Module:
    """Build a recurrent layer of one direction."""
    return _one_way(layer, plan_of((layer,), merge_mode=None))


def bidirectional(layer: LayerSpec) -> nn.Module:
    """Build a Bidirectional: one module if its halves are alike, a pair if they differ."""
    halves = (unwrap(layer.parts["forward_layer"]), unwrap(layer.parts["backward_layer"]))
    plan = plan_of(halves, layer.config["merge_mode"])
    if halves[0].class_name in CELL_GATES and can_share_module(*halves):
        return torch_module(halves, plan)
    single = [_one_way(h, Plan((rule,))) for h, rule in zip(halves, plan.rules, strict=True)]
    for half, module in zip(halves, single, strict=True):  # Keras 3 can freeze one half alone
        if not half.config.get("trainable", True):
            module.requires_grad_(False)
    return cast(nn.Module, BidirectionalPair(single[0], single[1], plan))


# ---- TimeDistributed -----------------------------------------------------------------------------


def fold_steps(x: Tensor) -> Tensor:
    """Fold (B, T, ...) -> (B * T, ...)."""
    return x.flatten(0, 1)


def unfold_steps(y: Tensor, like: Tensor) -> Tensor:
    """Unfold (B * T, ...) -> (B, T, ...), B and T those of ``like``."""
    return y.reshape(*like.shape[:2], *y.shape[1:])


class TimeDistributed(nn.Module):
    """``layer`` and the steps around it at every step: (B, T, ...) folded to (B * T, ...)."""

    def __init__(self, layer: nn.Module, steps: Around = ALONE) -> None:
        super().__init__()
        self.layer, self.before, self.after = layer, steps.before, steps.after

    def forward(self, x: Tensor | tuple[Tensor, ...], mask: Tensor | None = None) -> Tensor:
        """Apply it; a mask (B, T, ...) is folded like the input, a list of tensors like one."""
        folded = {} if mask is None else {"mask": fold_steps(mask)}
        inner = map_structure(fold_steps, x)
        y: Tensor = self.layer(inner if self.before is None else self.before(inner), **folded)
        y = y if self.after is None else self.after(y)
        return unfold_steps(y, x if isinstance(x, Tensor) else x[0])


def step_counts(x: Tensor, mask: Tensor) -> Tensor:
    """Reduce a mask (B, T, ...) to (B, T): a step is valid if any part of it is."""
    return mask.flatten(2).any(dim=2) if mask.dim() > 2 else mask


def mask_enters(layer: LayerSpec) -> bool:
    """Tell whether the inner layer sees the mask."""
    rule = layer.semantics["masking"]
    return rule != "passes by" and not (rule == "inner unless fixed" and _fixed(layer))


def inner_mask_leaves(layer: LayerSpec) -> bool:
    """Tell whether the output's mask is the inner layer's; else it is the one that came in."""
    rule = layer.semantics["masking"]
    return rule == "inner" or (rule.startswith("inner") and not _fixed(layer))


def _fixed(layer: LayerSpec) -> bool:
    """Tell whether the model fixes its batch size."""
    return isinstance(layer.input_shape, tuple) and isinstance(layer.input_shape[0], int)


def unknown_mask(layer: LayerSpec) -> bool:
    """Tell whether the file leaves open what mask comes out."""
    return layer.semantics["masking"] == "inner, unknown if fixed" and _fixed(layer)


_UNKNOWN = (
    "a mask into TimeDistributed with a fixed batch size is not supported: TensorFlow 2.1 and 2.2 "
    "hand on different masks and both call their Keras 2.3.0-tf"
)


def holds_model(layer: LayerSpec) -> bool:
    """Tell whether this TimeDistributed, or one inside it, holds a whole model."""
    if layer.class_name != "TimeDistributed":
        return False
    inner = layer.parts["layer"]
    return inner.graph is not None or holds_model(inner)


def _mask(layer: LayerSpec) -> MaskFlow:
    if holds_model(layer):  # the builder of graphs follows the mask through the model
        return MaskFlow(refused=_UNKNOWN if unknown_mask(layer) else None)
    inner = mask_flow(layer.parts["layer"])
    if unknown_mask(layer) and inner.after != "same":
        return MaskFlow(refused=_UNKNOWN)
    takes = inner.takes and mask_enters(layer)
    if not inner_mask_leaves(layer):
        return MaskFlow(takes=takes)
    if callable(inner.after):  # elementwise in all leading axes: folding changes nothing
        return inner
    after: Any = "same" if inner.after == "same" else step_counts
    return MaskFlow(takes=takes, after=after)


def check_steps(layer: LayerSpec) -> None:
    """Refuse what no step of time can have.

    Raises:
        UnsupportedOptionError: the inner layer carries states, or gives several tensors.
    """
    inner = layer.parts["layer"]
    if any(part.config.get("stateful") for part in inner.walk()):
        raise UnsupportedOptionError(
            "TimeDistributed over a stateful layer: its state would run from step to step",
            "make it stateful=False and save again",
            place=layer.place,
        )
    shape = inner.output_shape
    if isinstance(shape, tuple) and any(isinstance(part, tuple) for part in shape):
        raise UnsupportedOptionError(
            "TimeDistributed over a layer with several outputs, which no Keras computes",
            "save the model with one TimeDistributed for each output",
            place=layer.place,
        )


def time_distributed(layer: LayerSpec) -> nn.Module:
    """Build a TimeDistributed; over a Dense it is that Dense, which takes any rank.

    Over a whole model it is built by ``layers.graph``, which writes the model's calls out.
    """
    inner = layer.parts["layer"]
    if inner.class_name == "Dense":
        return convert_layer(inner)
    check_steps(layer)
    return TimeDistributed(convert_layer(inner), around(inner))


def _around(layer: LayerSpec) -> Around:
    inner = layer.parts["layer"]
    return around(inner) if inner.class_name == "Dense" else ALONE


CONVERTERS: Mapping[str, Converter] = {
    **dict.fromkeys((*CELL_GATES, "RNN"), Converter(recurrent, loop_mask)),
    "Bidirectional": Converter(bidirectional, loop_mask),
    "TimeDistributed": Converter(time_distributed, _mask, _around),
}
