"""Pooling over one axis, two or three, in windows and at once.

Letters: B batch, T time, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.reference.windows import as_given, channels_last, window_starts
from keras2torch_birnn.spec import Array, LayerSpec, Structure


def pooling(reduce: Callable[..., Array]) -> Equation:
    """Compute ``MaxPooling`` or ``AveragePooling``: of the real steps of each window only."""

    def equation(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
        x = channels_last(layer, context.number(x))
        sizes: Sequence[int] = layer.config["pool_size"]
        strides: Sequence[int] = layer.config["strides"] or sizes
        starts = [
            window_starts(steps, size, stride, layer.config["padding"])
            for steps, size, stride in zip(x.shape[1:-1], sizes, strides, strict=True)
        ]
        y = np.zeros((len(x), *(len(s) for s in starts), x.shape[-1]), dtype=x.dtype)
        axes = tuple(range(1, x.ndim - 1))
        for corner in np.ndindex(y.shape[1:-1]):
            place = [
                slice(max(s[i], 0), s[i] + size)
                for s, i, size in zip(starts, corner, sizes, strict=True)
            ]
            target: tuple[slice | int, ...] = (slice(None), *corner)
            part = (slice(None), *place)
            y[target] = reduce(x[part], axis=axes)
        return as_given(layer, y), None

    return equation


def global_max_pooling(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``GlobalMaxPooling.call``: the mask is not looked at."""
    x = channels_last(layer, context.number(x))
    return _whole(layer, x.max(axis=tuple(range(1, x.ndim - 1)), keepdims=True)), None


def global_average_pooling(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``GlobalAveragePooling.call``: the mean of the steps that count, 0/0 if none does.

    Of two axes: of all, the mask is not looked at.
    """
    x = channels_last(layer, context.number(x))
    valid = np.ones(x.shape[:-1], dtype=bool)
    if mask is not None and layer.semantics.get("use_mask"):
        valid = np.asarray(mask).astype(bool)
    if valid.shape != x.shape[:-1]:
        raise ValueError(f"a mask of shape {x.shape[:-1]} is expected, found {valid.shape}")
    axes = tuple(range(1, x.ndim - 1))
    weight = valid[..., np.newaxis].astype(x.dtype)
    total = np.where(valid[..., np.newaxis], x, 0).sum(axis=axes, keepdims=True)
    return _whole(layer, total / weight.sum(axis=axes, keepdims=True)), None


def adaptive_pooling(reduce: Callable[..., Array]) -> Equation:
    """Compute ``ops.adaptive_average_pool`` or ``adaptive_max_pool`` (Keras 3.15, TensorFlow)."""

    def equation(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
        x = channels_last(layer, context.number(x))
        sizes: Sequence[int] = layer.config["output_size"]
        y = np.zeros((len(x), *sizes, x.shape[-1]), dtype=x.dtype)
        axes = tuple(range(1, x.ndim - 1))
        for corner in np.ndindex(y.shape[1:-1]):
            place = [
                slice(math.floor(i * steps / size), math.ceil((i + 1) * steps / size))
                for i, steps, size in zip(corner, x.shape[1:-1], sizes, strict=True)
            ]
            target: tuple[slice | int, ...] = (slice(None), *corner)
            y[target] = reduce(x[(slice(None), *place)], axis=axes)
        return as_given(layer, y), None

    return equation


def _whole(layer: LayerSpec, y: Array) -> Array:
    """Return (B, 1, C) in the layer's format, or (B, C)."""
    return as_given(layer, y) if layer.config["keepdims"] else y.reshape(len(y), y.shape[-1])


EQUATIONS: Mapping[str, Equation] = {
    "MaxPooling1D": pooling(np.max),
    "MaxPooling2D": pooling(np.max),
    "MaxPooling3D": pooling(np.max),
    "AveragePooling1D": pooling(np.mean),
    "AveragePooling2D": pooling(np.mean),
    "AveragePooling3D": pooling(np.mean),
    "GlobalMaxPooling1D": global_max_pooling,
    "GlobalMaxPooling2D": global_max_pooling,
    "GlobalMaxPooling3D": global_max_pooling,
    "GlobalAveragePooling1D": global_average_pooling,
    "GlobalAveragePooling2D": global_average_pooling,
    "GlobalAveragePooling3D": global_average_pooling,
    "AdaptiveMaxPooling1D": adaptive_pooling(np.max),
    "AdaptiveMaxPooling2D": adaptive_pooling(np.max),
    "AdaptiveMaxPooling3D": adaptive_pooling(np.max),
    "AdaptiveAveragePooling1D": adaptive_pooling(np.mean),
    "AdaptiveAveragePooling2D": adaptive_pooling(np.mean),
    "AdaptiveAveragePooling3D": adaptive_pooling(np.mean),
}
