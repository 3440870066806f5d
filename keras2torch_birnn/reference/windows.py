"""Windows over the axes between batch and channels: shared by convolution, pooling and resizing.

Letters: B batch, T time, C channels. One axis or two: everything is computed as (B, T, C) or
(B, H, W, C); ``channels_first`` moves the channels before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from keras2torch_birnn.spec import Array, LayerSpec


def channels_last(layer: LayerSpec, x: Array) -> Array:
    """Return (B, T, C) from the layer's format."""
    return x if layer.config["data_format"] == "channels_last" else np.moveaxis(x, 1, -1)


def as_given(layer: LayerSpec, y: Array) -> Array:
    """Return (B, T, C) in the layer's format."""
    return y if layer.config["data_format"] == "channels_last" else np.moveaxis(y, -1, 1)


def window_starts(steps: int, extent: int, stride: int, padding: str) -> list[int]:
    """Return where each window begins; before 0 it reaches into the padding.

    ``conv_output_length`` (Keras 2.15) and TensorFlow's SAME: the odd step is padded at the end.
    """
    if padding == "valid":
        starts = list(range(0, steps - extent + 1, stride))
    else:
        count = -(-steps // stride)
        lacking = max((count - 1) * stride + extent - steps, 0)
        first = extent - 1 if padding == "causal" else lacking // 2
        starts = [index * stride - first for index in range(count)]
    if not starts:
        raise ValueError(f"a window of {extent} does not fit the {steps} steps")
    return starts


def reduce_windows(
    reduce: Callable[..., Array], x: Array, windows: Sequence[Sequence[slice]]
) -> Array:
    """Reduce (B, ..., C) in every window; ``windows``: those along each axis."""
    y = np.zeros((len(x), *map(len, windows), x.shape[-1]), dtype=x.dtype)
    axes = tuple(range(1, x.ndim - 1))
    for corner in np.ndindex(y.shape[1:-1]):
        part = (slice(None), *(axis[i] for axis, i in zip(windows, corner, strict=True)))
        target: tuple[slice | int, ...] = (slice(None), *corner)
        y[target] = reduce(x[part], axis=axes)
    return y


def pool(
    reduce: Callable[..., Array],
    x: Array,
    sizes: Sequence[int],
    strides: Sequence[int],
    padding: str,
) -> Array:
    """Reduce the real steps of each window of (B, ..., C)."""
    windows = [
        [slice(max(at, 0), at + size) for at in window_starts(steps, size, stride, padding)]
        for steps, size, stride in zip(x.shape[1:-1], sizes, strides, strict=True)
    ]
    return reduce_windows(reduce, x, windows)
