"""Builders of LSTM, GRU, SimpleRNN, RNN and Bidirectional; their modules are in ``rnn``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from torch import nn

from keras2torch_birnn.layers.loop_masks import loop_mask
from keras2torch_birnn.layers.registry import Converter, convert_layer
from keras2torch_birnn.rnn.cell_kind import can_share_module, layer_of_cell, unwrap
from keras2torch_birnn.rnn.custom_cell import CustomRNN
from keras2torch_birnn.rnn.engines import check_no_kernel
from keras2torch_birnn.rnn.modules import (
    BidirectionalPair,
    Plan,
    plan_of,
    torch_module,
)
from keras2torch_birnn.schema import CELL_GATES, CONV_LSTMS, cells_in_order
from keras2torch_birnn.schema.custom_cells import is_custom_cell, states_of
from keras2torch_birnn.spec import LayerSpec


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
    from keras2torch_birnn.rnn.custom_cell import StackedRNN

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
