"""Keras' padding "same" where torch has none: windows with a stride, pooling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def pad_same(
    x: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    value: float = 0.0,
) -> Tensor:
    """Pad the last axes of x so that windows cover ceil(length / stride) places.

    The odd element is added behind. ``size``: how far a (dilated) window reaches.
    """
    around: list[int] = []
    lengths = x.shape[-len(size) :]
    for length, reach, step in zip(lengths, size, stride, strict=True):
        total = -length % step + reach - step
        if reach < step:
            total = max(total, 0)
        around = [total // 2, total - total // 2, *around]
    return functional.pad(x, around, value=value)
