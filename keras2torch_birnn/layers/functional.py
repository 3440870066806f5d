"""Keras' operations for which torch has no function of the same meaning, under Keras' names.

Every one is called from a model's code, so each says what it does and keeps to plain tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# ---- value by value ------------------------------------------------------------------------------


def floor_divide(x1: Any, x2: Any) -> Any:
    """Compute floor(x1 / x2), as TensorFlow has it: 1 // 0.1 is 10, not 9."""
    if not isinstance(x1, Tensor) and not isinstance(x2, Tensor):
        return x1 // x2
    first = x1 if isinstance(x1, Tensor) else x2
    if first.is_floating_point():
        return torch.floor(x1 / x2)
    return torch.div(torch.as_tensor(x1), x2, rounding_mode="floor")


def divide_no_nan(x1: Any, x2: Any) -> Tensor:
    """Compute x1 / x2, and 0 where x2 is 0."""
    quotient: Tensor = x1 / x2
    return torch.where(torch.as_tensor(x2) == 0, torch.zeros_like(quotient), quotient)


def squared_difference(x1: Any, x2: Any) -> Tensor:
    """Compute (x1 - x2)^2."""
    difference: Tensor = x1 - x2
    return difference * difference


def maximum(x1: Any, x2: Any) -> Any:
    """Return the larger one; either may be a number."""
    return _extreme(x1, x2, torch.maximum, max)


def minimum(x1: Any, x2: Any) -> Any:
    """Return the smaller one; either may be a number."""
    return _extreme(x1, x2, torch.minimum, min)


def _extreme(x1: Any, x2: Any, of_tensors: Any, of_sizes: Any) -> Any:
    if not isinstance(x1, Tensor) and not isinstance(x2, Tensor):
        return of_sizes(x1, x2)
    like = x1 if isinstance(x1, Tensor) else x2
    return of_tensors(as_tensor(x1, like), as_tensor(x2, like))


def clip(x: Any, x_min: Any, x_max: Any) -> Any:
    """Limit to x_max, then to x_min (TensorFlow's order); each may be a number."""
    return maximum(minimum(x, x_max), x_min)


def add_all(xs: Sequence[Tensor]) -> Tensor:
    """Sum several tensors."""
    total = xs[0]
    for x in xs[1:]:
        total = total + x
    return total


# ---- along axes ----------------------------------------------------------------------------------


def product(x: Tensor, axis: Sequence[int] | None, keepdims: bool) -> Tensor:
    """Multiply along axes."""
    for dim in sorted((d % x.dim() for d in dims_of(x, axis)), reverse=True):
        x = torch.prod(x, dim, keepdim=keepdims)
    return x


def logsumexp(x: Tensor, axis: Sequence[int] | None, keepdims: bool) -> Tensor:
    """Compute log(sum(exp(x))) along axes."""
    return torch.logsumexp(x, dims_of(x, axis), keepdim=keepdims)


def normalize(x: Tensor, axis: Sequence[int] | None, smallest: float) -> Tensor:
    """Divide x by its norm along axes, or by a smallest norm."""
    length = (x * x).sum(dims_of(x, axis), keepdim=True).sqrt()
    return x / length.clamp(min=smallest)


def norm(x: Tensor, axis: Sequence[int] | None, keepdims: bool) -> Tensor:
    """Compute norms, each the root of the sum of squares."""
    length: Tensor = torch.linalg.vector_norm(x, 2.0, dims_of(x, axis), keepdim=keepdims)
    return length


def arg_extreme(x: Tensor, axis: int | None, keepdims: bool, largest: bool) -> Tensor:
    """Return the index of the first largest, or smallest; without an axis in the flat tensor."""
    function = torch.argmax if largest else torch.argmin
    if axis is not None:
        return function(x, dim=axis, keepdim=keepdims)
    found = function(x.flatten(), dim=0)
    return found.reshape([1] * x.dim()) if keepdims else found


def cumsum(x: Tensor, axis: int, reverse: bool, exclusive: bool) -> Tensor:
    """Compute cumulative sums; ``exclusive``: without the value itself."""
    x = x.flip(axis) if reverse else x
    y = x.cumsum(axis)
    if exclusive:
        first = torch.zeros_like(y.narrow(axis, 0, 1))
        y = torch.cat([first, y.narrow(axis, 0, y.shape[axis] - 1)], dim=axis)
    return y.flip(axis) if reverse else y


def top_k(x: Tensor, *sizes: int, k: int | None) -> tuple[Tensor, Tensor]:
    """Return the k largest along the last axis and their indices; ties in order of index."""
    values, places = torch.sort(x, dim=-1, descending=True, stable=True)
    most = sizes[0] if k is None else k
    return values[..., :most], places[..., :most]


# ---- products ------------------------------------------------------------------------------------


def matmul(x1: Tensor, x2: Tensor, transpose_a: bool, transpose_b: bool) -> Tensor:
    """Multiply matrices on the last two axes, each transposed before if its flag says so."""
    x1 = x1.transpose(-2, -1) if transpose_a else x1
    x2 = x2.transpose(-2, -1) if transpose_b else x2
    return torch.matmul(x1, x2)


def dot(x1: Tensor, x2: Tensor) -> Tensor:
    """Multiply as ``numpy.dot``: the last axis of x1 with the last but one of x2."""
    if x1.dim() == 0 or x2.dim() == 0:
        return x1 * x2
    product: Tensor = torch.tensordot(x1, x2, dims=([x1.dim() - 1], [max(x2.dim() - 2, 0)]))
    return product


def einsum(xs: Sequence[Tensor], subscripts: str) -> Tensor:
    """Compute an einsum."""
    return torch.einsum(subscripts, *xs)


def max_pool1d(x: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pool the last axis as one of two: in torch's max_pool1d ``torch.export`` fixes its size."""
    return functional.max_pool2d(x.unsqueeze(-2), (1, *size), (1, *stride)).squeeze(-2)


# ---- moving, repeating and choosing values -------------------------------------------------------


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
    samples = [
        torch.arange(x.shape[i], device=x.device).reshape(-1, *[1] * (indices.dim() - i - 1))
        for i in range(batch_dims)
    ]
    taken = x.movedim(axis, batch_dims)[(*samples, indices)]
    gone, added = axis - batch_dims, indices.dim() - batch_dims  # axes between, and of the indices
    new = range(batch_dims, batch_dims + added)
    return taken.movedim(tuple(new), tuple(place + gone for place in new))


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
