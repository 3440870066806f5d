"""Operations that move or choose values in NumPy: functions of ``operations``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras2torch_birnn.spec import Array


def fill_sizes(shape: Sequence[int | None] | None, sizes: Sequence[Array]) -> list[int]:
    """Return the sizes of a shape, with those that were computed filled in."""
    if shape is None:
        return [int(size) for size in sizes[0]]
    left = [int(size) for size in sizes]
    return [left.pop(0) if size is None else size for size in shape]


def reshape(x: Array, *sizes: Array, shape: Any) -> Array:
    """Compute ``tf.reshape``."""
    return np.reshape(x, fill_sizes(shape, sizes))


def tile(x: Array, *sizes: Array, shape: Any) -> Array:
    """Compute ``tf.tile``."""
    return np.tile(x, fill_sizes(shape, sizes))


def full(*sizes: Array, shape: Any, value: float) -> Array:
    """Compute ``tf.fill``."""
    return np.full(fill_sizes(shape, sizes), value)


def shape(x: Array) -> Array:
    """Compute ``tf.shape``."""
    return np.array(np.shape(x))


def broadcast_to(x: Array, *sizes: Array, shape: Any) -> Array:
    """Compute ``tf.broadcast_to``; -1 leaves a size."""
    wanted = fill_sizes(shape, sizes)
    for i in range(1, len(wanted) + 1):
        if wanted[-i] == -1:
            wanted[-i] = x.shape[-i]
    return np.broadcast_to(x, wanted)


def arange(*sizes: Array, bounds: Any) -> Array:
    """Compute ``tf.range``."""
    left = [int(size) for size in sizes]
    return np.arange(*(left.pop(0) if bound == "@" else bound for bound in bounds))


def get_item(x: Array, *sizes: Array, key: Any) -> Array:
    """Compute ``x[key]``, as ``tf.strided_slice`` and NumPy have it."""
    left = [int(size) for size in sizes]
    index: list[Any] = []
    for part in key:
        if isinstance(part, tuple):
            index.append(slice(*(left.pop(0) if bound == "@" else bound for bound in part)))
        elif part == "@":
            index.append(left.pop(0))
        else:
            index.append({"...": Ellipsis, None: np.newaxis}.get(part, part))
    return np.asarray(x[tuple(index)])


def pad(x: Array, pad_width: Any, value: float) -> Array:
    """Compute ``tf.pad``, ``keras.ops.pad``."""
    width = pad_width * x.ndim if len(pad_width) == 1 else pad_width
    return np.pad(x, width, constant_values=value)


def split(x: Array, sections: Any, by: str, axis: int) -> tuple[Array, ...]:
    """Compute ``tf.split`` (numbers or sizes of parts), ``numpy.split`` (places between them)."""
    if by == "sizes":
        rest = x.shape[axis] - sum(size for size in sections if size >= 0)
        sections = np.cumsum([size if size >= 0 else rest for size in sections])[:-1]
    return tuple(np.split(x, sections, axis=axis))


def unstack(x: Array, axis: int) -> tuple[Array, ...]:
    """Compute ``tf.unstack``."""
    return tuple(np.moveaxis(x, axis, 0))


def take(x: Array, indices: Array, axis: int | None, batch_dims: int) -> Array:
    """Compute ``tf.gather``, ``numpy.take``; for each sample apart where batch_dims says so."""
    if axis is None or not batch_dims:
        return np.take(x, indices, axis=axis)
    rows, axis = x.shape[:batch_dims], axis % x.ndim - batch_dims
    found = [np.take(x[at], indices[at], axis=axis) for at in np.ndindex(rows)]
    return np.reshape(found, (*rows, *found[0].shape))


def one_hot(x: Array, depth: int, axis: int) -> Array:
    """Compute ``tf.one_hot``."""
    return np.stack([x == place for place in range(depth)], axis=axis)


def sequence_mask(lengths: Array, *sizes: Array, maxlen: int | None) -> Array:
    """Compute ``tf.sequence_mask``."""
    longest = int(sizes[0]) if maxlen is None else maxlen
    return np.arange(longest) < lengths[..., np.newaxis]
