"""Pooling over one axis, two or three, in windows and at once.

Letters: B batch, T time, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.reference.windows import as_given, channels_last, pool
from keras2torch_birnn.schema.pages import for_ranks
from keras2torch_birnn.spec import Array, LayerSpec, Structure


def pooling(reduce: Callable[..., Array]) -> Equation:
    """Compute ``MaxPooling`` or ``AveragePooling``: of the real steps of each window only."""

    def equation(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
        x = channels_last(layer, context.number(x))
        sizes = layer.config["pool_size"]
        strides = layer.config["strides"] or sizes
        y = pool(reduce, x, sizes, strides, layer.config["padding"])
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


def _whole(layer: LayerSpec, y: Array) -> Array:
    """Return (B, 1, C) in the layer's format, or (B, C)."""
    return as_given(layer, y) if layer.config["keepdims"] else y.reshape(len(y), y.shape[-1])


EQUATIONS: Mapping[str, Equation] = {
    **for_ranks("MaxPooling{}D", lambda _: pooling(np.max)),
    **for_ranks("AveragePooling{}D", lambda _: pooling(np.mean)),
    **for_ranks("GlobalMaxPooling{}D", lambda _: global_max_pooling),
    **for_ranks("GlobalAveragePooling{}D", lambda _: global_average_pooling),
}
