"""Operations that move or choose values in NumPy: functions of ``operations``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras2torch_birnn.spec import Array

Config = Mapping[str, Any]


def fill_sizes(shape: Sequence[int | None] | None, sizes: Sequence[Array]) -> list[int]:
    """Return the sizes of a shape, with those that were computed filled in."""
    if shape is None:
        return [int(size) for size in sizes[0]]
    left = [int(size) for size in sizes]
    return [left.pop(0) if size is None else size for size in shape]


def broadcast_to(config: Config, x: Array, *sizes: Array) -> Array:
    """Compute ``tf.broadcast_to``; -1 leaves a size."""
    wanted = fill_sizes(config["shape"], sizes)
    for i in range(1, len(wanted) + 1):
        if wanted[-i] == -1:
            wanted[-i] = x.shape[-i]
    return np.broadcast_to(x, wanted)


def arange(config: Config, *sizes: Array) -> Array:
    """Compute ``tf.range``."""
    left = [int(size) for size in sizes]
    return np.arange(*(left.pop(0) if bound == "@" else bound for bound in config["bounds"]))


def get_item(config: Config, x: Array, *sizes: Array) -> Array:
    """Compute ``x[key]``, as ``tf.strided_slice`` and NumPy have it."""
    left = [int(size) for size in sizes]
    key: list[Any] = []
    for part in config["key"]:
        if isinstance(part, tuple):
            key.append(slice(*(left.pop(0) if bound == "@" else bound for bound in part)))
        elif part == "@":
            key.append(left.pop(0))
        else:
            key.append({"...": Ellipsis, None: np.newaxis}.get(part, part))
    return np.asarray(x[tuple(key)])


def pad(config: Config, x: Array) -> Array:
    """Compute ``tf.pad``, ``keras.ops.pad``."""
    width = config["pad_width"] * x.ndim if len(config["pad_width"]) == 1 else config["pad_width"]
    if config["mode"] == "constant":
        return np.pad(x, width, constant_values=config["value"])
    return np.pad(x, width, mode=config["mode"])


def band_part(config: Config, x: Array) -> Array:
    """Compute ``tf.linalg.band_part``: (lower < 0 or row - column <= lower), and so above."""
    rows, columns = np.indices(x.shape[-2:])
    kept = np.ones(x.shape[-2:], bool)
    if config["lower"] >= 0:
        kept &= rows - columns <= config["lower"]
    if config["upper"] >= 0:
        kept &= columns - rows <= config["upper"]
    return np.where(kept, x, np.zeros((), x.dtype))


def diagonal(config: Config, x: Array) -> Array:
    """Compute ``tf.linalg.diag_part``, ``keras.ops.diagonal``."""
    return np.diagonal(x, config["offset"], config["axis1"], config["axis2"])


def matrix_diag(config: Config, x: Array) -> Array:
    """Compute ``tf.linalg.diag``: x on one diagonal of a matrix of zeros."""
    offset, count = config["offset"], x.shape[-1]
    y = np.zeros((*x.shape[:-1], count + abs(offset), count + abs(offset)), x.dtype)
    for i in range(count):
        y[..., i + max(-offset, 0), i + max(offset, 0)] = x[..., i]
    return y


def split(config: Config, x: Array) -> tuple[Array, ...]:
    """Compute ``tf.split`` (numbers or sizes of parts), ``numpy.split`` (places between them)."""
    how, axis = config["sections"], config["axis"]
    if config["by"] == "sizes":
        known = sum(size for size in how if size >= 0)
        full = [size if size >= 0 else x.shape[axis] - known for size in how]
        how = [sum(full[: i + 1]) for i in range(len(full) - 1)]
    return tuple(np.split(x, how, axis=axis))


def unstack(config: Config, x: Array) -> tuple[Array, ...]:
    """Compute ``tf.unstack``."""
    return tuple(np.moveaxis(x, config["axis"], 0))


def expand_dims(config: Config, x: Array) -> Array:
    """Compute ``numpy.expand_dims``."""
    return np.expand_dims(x, config["axis"])


def take(config: Config, x: Array, indices: Array) -> Array:
    """Compute ``tf.gather``, ``numpy.take``; for each sample apart where batch_dims says so."""
    batch, axis = config["batch_dims"], config["axis"]
    if not batch:
        return np.take(x, indices, axis=axis)
    axis = axis % x.ndim
    found = [np.take(x[at], indices[at], axis=axis - batch) for at in np.ndindex(x.shape[:batch])]
    return np.reshape(found, (*x.shape[:batch], *found[0].shape))


def gather_nd(config: Config, x: Array, indices: Array) -> Array:
    """Compute ``tf.gather_nd``: x at a place for each row of indices, for each sample apart."""
    batch = config["batch_dims"]
    places = np.ndindex(indices.shape[:-1])
    found = []
    for place in places:
        index = (*place[:batch], *map(int, indices[place]))
        found.append(x[index])
    inner = x.shape[batch + indices.shape[-1] :]
    return np.reshape(found, (*indices.shape[:-1], *inner)).astype(x.dtype)


def reverse_sequence(config: Config, x: Array, lengths: Array) -> Array:
    """Compute ``tf.reverse_sequence``."""
    y = np.moveaxis(x, (config["batch_axis"], config["seq_axis"]), (0, 1)).copy()
    for row, length in enumerate(lengths):
        y[row, :length] = y[row, :length][::-1]
    return np.moveaxis(y, (0, 1), (config["batch_axis"], config["seq_axis"]))


def one_hot(config: Config, x: Array) -> Array:
    """Compute ``tf.one_hot``."""
    return np.stack([x == place for place in range(config["depth"])], axis=config["axis"])


def sequence_mask(config: Config, lengths: Array, *sizes: Array) -> Array:
    """Compute ``tf.sequence_mask``."""
    longest = int(sizes[0]) if config["maxlen"] is None else config["maxlen"]
    return np.arange(longest) < lengths[..., np.newaxis]
