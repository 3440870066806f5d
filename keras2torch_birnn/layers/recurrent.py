"""The recurrent layers' entry in the registry; the modules are in ``rnn`` and ``conv_lstm``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import nn

from keras2torch_birnn.layers.conv_lstm import ConvLSTM, conv_lstm
from keras2torch_birnn.layers.registry import USES, Converter, MaskFlow
from keras2torch_birnn.rnn.cell_kind import can_share_module
from keras2torch_birnn.rnn.cell_stack import StackedRNN
from keras2torch_birnn.rnn.modules import (
    GRU,
    LSTM,
    RNN,
    BidirectionalPair,
    LoopRNN,
    Plan,
    plan_of,
    torch_module,
)
from keras2torch_birnn.rnn.unwrap_rnn import layers_of_stack, plain
from keras2torch_birnn.schema import CELL_GATES, RECURRENT, states_of
from keras2torch_birnn.schema.recurrent import CONV_LSTMS
from keras2torch_birnn.spec import LayerSpec

RecurrentModule = LSTM | GRU | RNN | LoopRNN | BidirectionalPair | StackedRNN | ConvLSTM

_NO_MASK = "a mask into {} is not supported: this Keras fails on it as well"


def _mask(layer: LayerSpec) -> MaskFlow:
    one = layer.parts.get("forward_layer", layer)
    halves = layer.parts.values() if layer.class_name == "Bidirectional" else (layer,)
    if any(half.config["masked_output"] == "fails" for half in halves):
        what = "cells of different width" if one.class_name == "RNN" else one.class_name
        return MaskFlow(refused=_NO_MASK.format(what))
    # The output has steps, and so a mask, only with return_sequences.
    return MaskFlow(takes=True) if one.config["return_sequences"] else USES


def _one_way(layer: LayerSpec, plan: Plan) -> nn.Module:
    """The module of one direction of any recurrent layer."""
    layer = plain(layer)
    if layer.class_name in CELL_GATES:
        return torch_module((layer,), plan)
    if layer.class_name in CONV_LSTMS:
        return conv_lstm(layer, plan)
    cells = [torch_module((cell,), plan_of((cell,), None)) for cell in layers_of_stack(layer)]
    return StackedRNN(cells, states_of(layer.parts["cell"]), plan)


def recurrent(layer: LayerSpec) -> nn.Module:
    """Build a recurrent layer of one direction."""
    return _one_way(layer, plan_of((layer,), merge_mode=None))


def bidirectional(layer: LayerSpec) -> nn.Module:
    """Build a Bidirectional: one module if its halves are alike, a pair if they differ."""
    halves = (plain(layer.parts["forward_layer"]), plain(layer.parts["backward_layer"]))
    plan = plan_of(halves, layer.config["merge_mode"])
    if halves[0].class_name in CELL_GATES and can_share_module(*halves):
        return torch_module(halves, plan)
    single = [_one_way(h, Plan((rule,))) for h, rule in zip(halves, plan.rules, strict=True)]
    for half, module in zip(halves, single, strict=True):  # Keras 3 can freeze one half alone
        if not half.config.get("trainable", True):
            module.requires_grad_(False)
    return cast(nn.Module, BidirectionalPair(single[0], single[1], plan))


CONVERTERS: Mapping[str, Converter] = {
    **dict.fromkeys(RECURRENT, Converter(recurrent, _mask)),
    "Bidirectional": Converter(bidirectional, _mask),
}
