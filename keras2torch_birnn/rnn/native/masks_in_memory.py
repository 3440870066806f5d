"""Masks of dropout as the native kernel takes them.

B batch, F features, H units; M masks: one for all gates, or one for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from keras2torch_birnn.rnn.call import DropoutMasks


class StackedMasks(NamedTuple):
    """Addresses of the masks of inputs (M, B, F) and of states (M, B, H), two each, 0 for none.

    apart: whether each gate has its own. alive: the memory of the masks.
    """

    inputs: Sequence[int] = (0, 0)
    state: Sequence[int] = (0, 0)
    apart: bool = False
    alive: Sequence[Tensor] = ()


def two_addresses(tensors: Sequence[Tensor]) -> Sequence[int]:
    """Return the addresses of tensors of each direction; 0 where there is none."""
    return (*map(Tensor.data_ptr, tensors), 0, 0)[:2]


def stack_masks(masks: Sequence[DropoutMasks]) -> StackedMasks:
    """Join the masks of each direction's gates."""
    apart = any(len(given) > 1 for each in masks for given in each)
    inputs = [torch.stack(each.inputs) for each in masks if each.inputs]
    state = [torch.stack(each.state) for each in masks if each.state]
    return StackedMasks(two_addresses(inputs), two_addresses(state), apart, (*inputs, *state))


NO_MASKS = StackedMasks()
