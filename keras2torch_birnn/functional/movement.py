"""Keras' operations that move, repeat or choose values, under Keras' names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def same_padding(length: int, extent: int, stride: int) -> tuple[int, int]:
    """Return the padding before and after of TensorFlow's "same": the odd one is after."""
    total = -length % stride + extent - stride
    if extent < stride:
        total = max(total, 0)
    return total // 2, total - total // 2


def dims_of(x: Tensor, axis: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return axes as a tuple; None stands for all."""
    if axis is None:
        return tuple(range(x.dim()))
    return (axis,) if isinstance(axis, int) else tuple(axis)


def as_tensor(value: Any, like: Tensor) -> Tensor:
    """Return a tensor, or make one of a number, on the device of ``like`` and in its dtype.

    ``torch.as_tensor`` would copy the number from the host to a GPU in every call.
    """
    return value if isinstance(value, Tensor) else like.new_full((), value)


def count_up(like: Tensor, *sizes: Any, bounds: Sequence[Any], dtype: torch.dtype | None) -> Tensor:
    """Make a range of integers on the device of ``like``; "@" is the next of ``sizes``."""
    free = iter(sizes)
    start, stop, step = (next(free) if bound == "@" else bound for bound in bounds)
    numbers = torch.arange(start, stop, step, device=like.device)
    return numbers.to(like.dtype if dtype is None else dtype)


def getitem_backwards(x: Tensor, parts: tuple[Any, ...]) -> Tensor:
    """Index ``x[parts]`` with negative steps, which torch does not support."""
    named = sum(part is not None and part is not Ellipsis for part in parts)
    axis, rest = 0, []
    for part in parts:
        if part is Ellipsis:
            axis += x.dim() - named
        elif isinstance(part, slice) and (part.step or 1) < 0:
            places = range(*part.indices(x.shape[axis]))
            steps = torch.arange(len(places), device=x.device)
            x = x.index_select(axis, places.start + places.step * steps)
            part = slice(None)
        axis += part is not None and part is not Ellipsis
        rest.append(part)
    return x[tuple(rest)]


def expand_dims(x: Tensor, axis: Sequence[int]) -> Tensor:
    """Insert axes of size 1 at these positions of the result."""
    rank = x.dim() + len(axis)
    for place in sorted(a % rank for a in axis):
        x = x.unsqueeze(place)
    return x


def transpose(x: Tensor, axes: Sequence[int] | None) -> Tensor:
    """Permute: result axis i is axis axes[i]; without axes reverse the order of all."""
    return x.permute(*(range(x.dim())[::-1] if axes is None else axes))


def flip(x: Tensor, axis: Sequence[int] | None) -> Tensor:
    """Reverse axes."""
    return x.flip(dims_of(x, axis))


def pad(x: Tensor, pad_width: Sequence[Sequence[int]], value: float) -> Tensor:
    """Pad every axis before and after with a value; one pair is for all axes."""
    pairs = list(pad_width) * x.dim() if len(pad_width) == 1 else pad_width
    flat = [width for pair in reversed(pairs) for width in pair]
    return torch.nn.functional.pad(x, flat, value=value)


def split(x: Tensor, sections: Any, by: str, axis: int) -> tuple[Tensor, ...]:
    """Split into equal parts, into parts of given sizes (-1: the rest), or at positions."""
    whole = x.shape[axis]
    if by == "places":
        return torch.tensor_split(x, list(sections), dim=axis)
    if by == "count":
        return torch.split(x, whole // sections, dim=axis)
    rest = whole - sum(part for part in sections if part != -1)
    return torch.split(x, [rest if part == -1 else part for part in sections], dim=axis)


def where(condition: Any, x1: Any, x2: Any) -> Tensor:
    """Select x1 where the condition holds, else x2; either may be a number."""
    like = next((x for x in (x1, x2) if isinstance(x, Tensor)), None)
    if like is None:
        like = condition.new_zeros((), dtype=torch.get_default_dtype())
    return torch.where(condition, as_tensor(x1, like), as_tensor(x2, like))


def take(x: Tensor, indices: Tensor, axis: int | None, batch_dims: int) -> Tensor:
    """Take rows of an axis by index; negative indices count from the end.

    The first ``batch_dims`` axes of both go together.
    """
    if axis is None:
        x, axis = x.flatten(), 0
    axis = axis % x.dim()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    if batch_dims == 0:
        rows = x.index_select(axis, indices.flatten())
        return rows.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    taken = gather_nd(x.movedim(axis, batch_dims), indices[..., None], batch_dims)
    gone, added = axis - batch_dims, indices.dim() - batch_dims  # axes between, and of the indices
    new = range(batch_dims, batch_dims + added)
    return taken.movedim(tuple(new), tuple(place + gone for place in new))


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    """Gather values at positions along the first axes, the last axis of ``indices``.

    The first ``batch_dims`` axes of both go together.
    """
    rank = indices.dim() - 1
    rows = [
        torch.arange(x.shape[i], device=x.device).reshape(-1, *[1] * (rank - i - 1))
        for i in range(batch_dims)
    ]
    index = (*rows, *indices.unbind(-1))
    return x[index]


def take_along(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Take values along an axis by ``indices``; the other axes are broadcast."""
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    return torch.take_along_dim(x, indices, dim=axis)


def one_hot(x: Tensor, depth: int, axis: int) -> Tensor:
    """Set True at index x of a new axis; nowhere if x is out of range."""
    hot = x[..., None] == torch.arange(depth, device=x.device)
    return hot.movedim(-1, axis)


def sequence_mask(lengths: Tensor, *sizes: int, maxlen: int | None) -> Tensor:
    """Set True for the first ``lengths`` of ``maxlen`` steps."""
    longest = sizes[0] if maxlen is None else maxlen
    return torch.arange(longest, device=lengths.device) < lengths[..., None]


def size_tensor(like: Tensor, size: Any, *, dtype: torch.dtype | None = None) -> Tensor:
    """Make a tensor of a size, or of several, which stays open where the size is."""
    if isinstance(size, (tuple, list)):
        return torch.stack([like.new_full((), one, dtype=dtype) for one in size])
    return like.new_full((), size, dtype=dtype)


def join_sizes(xs: Sequence[Any]) -> tuple[int, ...]:
    """Join sizes and tuples of sizes to one tuple."""
    return tuple(size for x in xs for size in (x if isinstance(x, (tuple, list)) else (x,)))
