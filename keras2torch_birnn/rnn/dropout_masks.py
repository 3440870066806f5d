"""Masks of the dropout inside a recurrent layer: one for all steps, drawn before the first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from keras2torch_birnn.rnn.call import DropoutMasks, RnnCall
from keras2torch_birnn.rnn.cell_kind import CELL_KINDS
from keras2torch_birnn.rnn.layer import RnnLayer


def draw_masks(layer: RnnLayer, call: RnnCall) -> RnnCall:
    """Return the call with masks for each direction, if the layer drops now."""
    if layer.dropout is None or not layer.drops():
        return call
    rates, x = layer.dropout, call.x
    copies = CELL_KINDS[layer.cell.kind].gates if rates.per_gate else 1
    units = layer.get_weight_hh().shape[1]
    # The order decides which random numbers a mask gets.
    masks = tuple(
        DropoutMasks(
            _draw(x[:, 0], copies, rates.inputs),
            _draw(x.new_zeros(x.shape[0], units), copies, rates.recurrent),
        )
        for _ in range(layer.count_directions())
    )
    return call._replace(masks=masks)


def _draw(like: Tensor, copies: int, rate: float) -> tuple[Tensor, ...]:
    """Draw masks, 0 or 1 / (1 - rate); none unless 0 < rate < 1, as in Keras."""
    if not 0.0 < rate < 1.0:
        return ()
    return tuple(functional.dropout(torch.ones_like(like), rate) for _ in range(copies))
