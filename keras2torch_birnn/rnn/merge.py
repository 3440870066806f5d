"""Keras' merge modes, in one table: how the outputs of the two directions become one tensor.

It imports torch only to concatenate: the native library's numbers are compared without torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class MergeMode(NamedTuple):
    """Facts about one merge mode.

    combine: (B, ..., Hf) and (B, ..., Hb) -> the merged tensor. native_code: ``enum K2tMerge``;
    "concat" is two outputs side by side. fold_factor: the factor of the next layer's input weights
    if that layer reads both directions side by side instead of merged; None if none exists.
    """

    combine: Callable[[Tensor, Tensor], Tensor]
    native_code: int
    fold_factor: float | None = None


def concat(forward: Tensor, backward: Tensor) -> Tensor:
    """Join (B, ..., Hf) and (B, ..., Hb) to (B, ..., Hf + Hb)."""
    import torch

    return torch.cat((forward, backward), dim=-1)


def average(forward: Tensor, backward: Tensor) -> Tensor:
    """Return half the sum."""
    return (forward + backward) / 2


# Without merge_mode None, which keeps both apart.
MERGE_MODES: Mapping[str, MergeMode] = {
    "concat": MergeMode(concat, native_code=0),
    "sum": MergeMode(operator.add, native_code=1, fold_factor=1.0),
    "mul": MergeMode(operator.mul, native_code=2),
    "ave": MergeMode(average, native_code=3, fold_factor=0.5),
}


def merge_outputs(outputs: tuple[Tensor, ...], merge: str | None) -> tuple[Tensor, ...]:
    """Merge the outputs of two directions into one, or keep them apart (None)."""
    return outputs if merge is None else (MERGE_MODES[merge].combine(*outputs),)
