"""Keras' merge modes: how the two directions become one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def concat(forward: Tensor, backward: Tensor) -> Tensor:
    """(B, ..., Hf) and (B, ..., Hb) -> (B, ..., Hf + Hb)."""
    return torch.cat((forward, backward), dim=-1)


def average(forward: Tensor, backward: Tensor) -> Tensor:
    """Half the sum."""
    return (forward + backward) / 2


# merge_mode None keeps both apart and is no function of this table.
MERGE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "concat": concat,
    "sum": torch.add,
    "mul": torch.mul,
    "ave": average,
}
