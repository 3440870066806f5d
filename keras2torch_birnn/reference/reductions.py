"""Reductions, norms and orders along axes in NumPy: functions of ``operations``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras2torch_birnn.spec import Array

Config = Mapping[str, Any]


def logsumexp(x: Array, axis: Any, keepdims: bool) -> Array:
    """Compute ``tf.reduce_logsumexp``."""
    top = x.max(axis=axis, keepdims=True)
    total: Array = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    if keepdims:
        return total
    return total.reshape(x.sum(axis=axis).shape)


def vector_norm(x: Array, axis: Any, keepdims: bool) -> Array:
    """Compute ``tf.norm``, euclidean."""
    squares: Any = np.square(x)
    y: Array = np.sqrt(squares.sum(axis=axis, keepdims=keepdims))
    return y


def norm(config: Config, x: Array) -> Array:
    """Compute ``tf.norm``, ``keras.ops.norm`` of vectors."""
    axis, keepdims = config["axis"], config["keepdims"]
    if config["order"] == 2:
        return vector_norm(x, axis, keepdims)
    reduce: Any = np.sum if config["order"] == 1 else np.max
    return np.asarray(reduce(np.abs(x), axis=axis, keepdims=keepdims))


def clip_by_norm(config: Config, x: Array) -> Array:
    """Compute ``tf.clip_by_norm``: what is longer is made so long."""
    length, most = vector_norm(x, config["axis"], keepdims=True), config["largest"]
    return np.where(length > most, x * most / np.where(length > most, length, 1), x)


def moments(config: Config, x: Array) -> tuple[Array, Array]:
    """Compute ``keras.ops.moments``."""
    options = {"axis": config["axis"], "keepdims": config["keepdims"]}
    return np.asarray(x.mean(**options)), np.asarray(x.var(**options))


def normalize(config: Config, x: Array) -> Array:
    """Compute ``tf.math.l2_normalize``.

    Epsilon bounds the square; ``keras.ops.normalize``: the length.
    """
    y: Array = x / np.maximum(vector_norm(x, config["axis"], keepdims=True), config["smallest"])
    return y


def count_nonzero(config: Config, x: Array) -> Array:
    """Compute ``tf.math.count_nonzero``."""
    options = {"axis": config["axis"], "keepdims": config["keepdims"]}
    return np.asarray(np.sum(x != 0, dtype=np.int64, **options))


def argsort(config: Config, x: Array) -> Array:
    """Compute ``tf.argsort``, stable."""
    key = -x if config["descending"] else x
    return np.argsort(key, axis=config["axis"], kind="stable")


def sort(config: Config, x: Array) -> Array:
    """Compute ``tf.sort``."""
    return np.take_along_axis(x, argsort(config, x), axis=config["axis"])


def top_k(config: Config, x: Array, *sizes: Array) -> tuple[Array, Array]:
    """Compute ``tf.math.top_k``: of equal values the first comes first."""
    most = int(sizes[0]) if config["k"] is None else config["k"]
    places = np.argsort(-x, axis=-1, kind="stable")[..., :most]
    return np.take_along_axis(x, places, axis=-1), places


def average(config: Config, x: Array, weights: Array) -> Array:
    """Compute ``numpy.average``."""
    spread = np.broadcast_to(weights, x.shape)
    axis = config["axis"]
    y: Array = np.sum(x * spread, axis=axis) / np.sum(spread, axis=axis)
    return y
