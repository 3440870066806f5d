"""Reductions, norms and orders along axes in NumPy: functions of ``operations``."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from keras2torch_birnn.spec import Array


def logsumexp(x: Array, axis: Any, keepdims: bool) -> Array:
    """Compute ``tf.reduce_logsumexp``."""
    top = x.max(axis=axis, keepdims=True)
    total: Array = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    if keepdims:
        return total
    return total.reshape(x.sum(axis=axis).shape)


def norm(x: Array, axis: Any, keepdims: bool) -> Array:
    """Compute ``tf.norm``, ``keras.ops.norm`` of vectors: euclidean."""
    squares: Any = np.square(x)
    y: Array = np.sqrt(squares.sum(axis=axis, keepdims=keepdims))
    return y


def moments(x: Array, axis: Any, keepdims: bool) -> tuple[Array, Array]:
    """Compute ``keras.ops.moments``."""
    options = {"axis": axis, "keepdims": keepdims}
    return np.asarray(x.mean(**options)), np.asarray(x.var(**options))


def normalize(x: Array, axis: Any, smallest: float) -> Array:
    """Compute ``tf.math.l2_normalize``.

    Epsilon bounds the square; ``keras.ops.normalize``: the length.
    """
    y: Array = x / np.maximum(norm(x, axis, keepdims=True), smallest)
    return y


def count_nonzero(x: Array, axis: Any, keepdims: bool) -> Array:
    """Compute ``tf.math.count_nonzero``."""
    return np.asarray(np.count_nonzero(x, axis=axis, keepdims=keepdims), np.int64)


def _cumulate(
    function: Any, start: int, x: Array, axis: int, reverse: bool, exclusive: bool
) -> Array:
    y = np.moveaxis(x, axis, 0)
    y = y[::-1] if reverse else y
    total = function(y, axis=0)
    if exclusive:
        total = np.concatenate([np.full_like(total[:1], start), total[:-1]])
    total = total[::-1] if reverse else total
    return np.moveaxis(total, 0, axis)


# ``tf.cumsum``, ``tf.math.cumprod``
cumsum, cumprod = partial(_cumulate, np.cumsum, 0), partial(_cumulate, np.cumprod, 1)


def argsort(x: Array, axis: int, descending: bool) -> Array:
    """Compute ``tf.argsort``, stable."""
    return np.argsort(-x if descending else x, axis=axis, kind="stable")


def sort(x: Array, axis: int, descending: bool) -> Array:
    """Compute ``tf.sort``."""
    return np.take_along_axis(x, argsort(x, axis, descending), axis=axis)


def top_k(x: Array, *sizes: Array, k: int | None) -> tuple[Array, Array]:
    """Compute ``tf.math.top_k``: of equal values the first comes first."""
    most = int(sizes[0]) if k is None else k
    places = np.argsort(-x, axis=-1, kind="stable")[..., :most]
    return np.take_along_axis(x, places, axis=-1), places


def average(x: Array, weights: Array, axis: int | None) -> Array:
    """Compute ``numpy.average``."""
    spread = np.broadcast_to(weights, x.shape)
    y: Array = np.sum(x * spread, axis=axis) / np.sum(spread, axis=axis)
    return y
