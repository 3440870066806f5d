"""Reductions and norms along axes in NumPy: functions of ``operations``."""

from __future__ import annotations

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


def normalize(x: Array, axis: Any, smallest: float) -> Array:
    """Compute ``tf.math.l2_normalize``.

    Epsilon bounds the square; ``keras.ops.normalize``: the length.
    """
    y: Array = x / np.maximum(norm(x, axis, keepdims=True), smallest)
    return y


def cumsum(x: Array, axis: int, reverse: bool, exclusive: bool) -> Array:
    """Compute ``tf.cumsum``."""
    y = np.moveaxis(x, axis, 0)
    total = np.cumsum(y[::-1] if reverse else y, axis=0)
    if exclusive:
        total = np.concatenate([np.zeros_like(total[:1]), total[:-1]])
    return np.moveaxis(total[::-1] if reverse else total, 0, axis)


def top_k(x: Array, *sizes: Array, k: int | None) -> tuple[Array, Array]:
    """Compute ``tf.math.top_k``: of equal values the first comes first."""
    most = int(sizes[0]) if k is None else k
    places = np.argsort(-x, axis=-1, kind="stable")[..., :most]
    return np.take_along_axis(x, places, axis=-1), places
