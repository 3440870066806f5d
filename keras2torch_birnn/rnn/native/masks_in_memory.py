"""Masks of dropout as the native kernel takes them.

B batch, F features, H units; M masks: one for all gates, or one for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keras2torch_birnn.rnn.call import DropoutMasks


@dataclass(frozen=True)
class StackedMasks:
    """Masks of the inputs (M, B, F) and of the states (M, B, H), for each direction, or none.

    apart: whether each gate has its own.
    """

    inputs: Sequence[Tensor] = ()
    state: Sequence[Tensor] = ()
    apart: bool = False

    def input_addresses(self) -> Sequence[int]:
        """Return two addresses, 0 for none."""
        return _addresses(self.inputs)

    def state_addresses(self) -> Sequence[int]:
        """Return two addresses, 0 for none."""
        return _addresses(self.state)


_NONE = (0, 0)


def _addresses(masks: Sequence[Tensor]) -> Sequence[int]:
    return (*(m.data_ptr() for m in masks), *_NONE)[:2] if masks else _NONE


def stack_masks(masks: Sequence[DropoutMasks]) -> StackedMasks:
    """Join the masks of each direction's gates."""
    apart = any(len(given) > 1 for each in masks for given in each)
    inputs = [torch.stack(each.inputs) for each in masks if each.inputs]
    return StackedMasks(inputs, [torch.stack(each.state) for each in masks if each.state], apart)


NO_MASKS = StackedMasks()
