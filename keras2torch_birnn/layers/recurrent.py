"""Builders of LSTM, GRU, SimpleRNN, RNN and Bidirectional; their modules are in ``rnn``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from keras2torch_birnn.layers.masking import loop_mask
from keras2torch_birnn.layers.registry import Converter, convert_layer
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
from keras2torch_birnn.schema.activation import activation_label
from keras2torch_birnn.schema.custom_cells import is_custom_cell, states_of
from keras2torch_birnn.spec import LayerSpec

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
        from keras2torch_birnn.layers import conv_lstm  # a page that other layers do not need

        return conv_lstm.one_direction(layer, plan)
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


CONVERTERS: Mapping[str, Converter] = {
    **dict.fromkeys((*CELL_GATES, "RNN"), Converter(recurrent, loop_mask)),
    "Bidirectional": Converter(bidirectional, loop_mask),
}
