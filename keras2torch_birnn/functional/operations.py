"""Keras' operations for which torch has no function of the same meaning, under Keras' names.

Every one is called from a model's code, so each says what it does and keeps to plain tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def _dims(x: Tensor, axis: int | Sequence[int] | None) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.dim()))
    return (axis,) if isinstance(axis, int) else tuple(axis)


# ---- value by value ------------------------------------------------------------------------------


def floor_divide(x1: Any, x2: Any) -> Any:
    """floor(x1 / x2), as TensorFlow has it: 1 // 0.1 is 10, not 9."""
    if isinstance(x1, int) and isinstance(x2, int):
        return x1 // x2
    first = x1 if isinstance(x1, Tensor) else x2
    if first.is_floating_point():
        return torch.floor(x1 / x2)
    return torch.div(torch.as_tensor(x1), x2, rounding_mode="floor")


def divide_no_nan(x1: Any, x2: Any) -> Tensor:
    """x1 / x2, and 0 where x2 is 0."""
    quotient: Tensor = x1 / x2
    return torch.where(torch.as_tensor(x2) == 0, torch.zeros_like(quotient), quotient)


def multiply_no_nan(x1: Tensor, x2: Tensor) -> Tensor:
    """x1 x2, and 0 where x2 is 0, whatever x1 is."""
    return torch.where(x2 == 0, 0.0, x1 * x2)


def xlogy(x1: Tensor, x2: Tensor) -> Tensor:
    """x1 log(x2), and 0 where x1 is 0."""
    return torch.where(x1 == 0, 0.0, x1 * torch.log(x2))


def xlog1py(x1: Tensor, x2: Tensor) -> Tensor:
    """x1 log(1 + x2), and 0 where x1 is 0."""
    return torch.where(x1 == 0, 0.0, x1 * torch.log1p(x2))


def xdivy(x1: Tensor, x2: Tensor) -> Tensor:
    """x1 / x2, and 0 where x1 is 0."""
    return torch.where(x1 == 0, 0.0, x1 / x2)


def squared_difference(x1: Any, x2: Any) -> Tensor:
    """(x1 - x2)^2."""
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
    return of_tensors(*(x if isinstance(x, Tensor) else like.new_tensor(x) for x in (x1, x2)))


def clip(x: Any, x_min: Any, x_max: Any) -> Any:
    """Limit to x_max, then to x_min (TensorFlow's order); each may be a number."""
    return maximum(minimum(x, x_max), x_min)


def arctan2(x1: Any, x2: Any) -> Tensor:
    """Return the angle of (x2, x1)."""
    like = x1 if isinstance(x1, Tensor) else x2
    pair = (x if isinstance(x, Tensor) else like.new_tensor(x) for x in (x1, x2))
    return torch.atan2(*pair)


def logaddexp(x1: Any, x2: Any) -> Tensor:
    """log(exp(x1) + exp(x2))."""
    like = x1 if isinstance(x1, Tensor) else x2
    pair = (x if isinstance(x, Tensor) else like.new_tensor(x) for x in (x1, x2))
    return torch.logaddexp(*pair)


def add_all(xs: Sequence[Tensor]) -> Tensor:
    """Sum several tensors."""
    total = xs[0]
    for x in xs[1:]:
        total = total + x
    return total


# ---- along axes ----------------------------------------------------------------------------------


def product(x: Tensor, axis: Sequence[int] | None, keepdims: bool) -> Tensor:
    """Multiply along axes."""
    for dim in sorted((d % x.dim() for d in _dims(x, axis)), reverse=True):
        x = torch.prod(x, dim, keepdim=keepdims)
    return x


def logsumexp(x: Tensor, axis: Sequence[int] | None, keepdims: bool) -> Tensor:
    """log(sum(exp(x))) along axes."""
    return torch.logsumexp(x, _dims(x, axis), keepdim=keepdims)


def moments(x: Tensor, axis: Sequence[int] | None, keepdims: bool) -> tuple[Tensor, Tensor]:
    """Compute mean and variance along axes."""
    dims = _dims(x, axis)
    return x.mean(dims, keepdim=keepdims), x.var(dims, correction=0, keepdim=keepdims)


def average(x: Tensor, weights: Any, axis: int | None) -> Tensor:
    """Compute the mean of x with weights, which are broadcast."""
    spread = torch.as_tensor(weights, dtype=x.dtype, device=x.device).broadcast_to(x.shape)
    dims = _dims(x, axis)
    return torch.sum(x * spread, dims) / torch.sum(spread, dims)


def normalize(x: Tensor, axis: Sequence[int] | None, smallest: float) -> Tensor:
    """Divide x by its norm along axes, or by a smallest norm."""
    length = (x * x).sum(_dims(x, axis), keepdim=True).sqrt()
    return x / length.clamp(min=smallest)


def norm(x: Tensor, order: int | str, axis: Sequence[int] | None, keepdims: bool) -> Tensor:
    """Compute norms: sum of absolute values (1), root of squares (2), largest ("inf")."""
    length: Tensor = torch.linalg.vector_norm(x, float(order), _dims(x, axis), keepdim=keepdims)
    return length


def clip_by_norm(x: Tensor, axis: Sequence[int] | None, largest: float) -> Tensor:
    """Scale x down to the given norm where it is larger."""
    length = (x * x).sum(_dims(x, axis), keepdim=True).sqrt()
    return x * largest / length.clamp(min=largest)


def count_nonzero(x: Tensor, axis: Sequence[int] | None, keepdims: bool) -> Tensor:
    """Count the values that are not zero."""
    return (x != 0).sum(_dims(x, axis), keepdim=keepdims)


def arg_extreme(x: Tensor, axis: int | None, keepdims: bool, largest: bool) -> Tensor:
    """Return the index of the first largest, or smallest; without an axis in the flat tensor."""
    function = torch.argmax if largest else torch.argmin
    if axis is not None:
        return function(x, dim=axis, keepdim=keepdims)
    found = function(x.flatten(), dim=0)
    return found.reshape([1] * x.dim()) if keepdims else found


def cumulate(x: Tensor, axis: int, reverse: bool, exclusive: bool, product: bool) -> Tensor:
    """Compute cumulative sums or products; ``exclusive``: without the value itself."""
    x = x.flip(axis) if reverse else x
    y = x.cumprod(axis) if product else x.cumsum(axis)
    if exclusive:
        first = torch.full_like(y.narrow(axis, 0, 1), 1 if product else 0)
        y = torch.cat([first, y.narrow(axis, 0, y.shape[axis] - 1)], dim=axis)
    return y.flip(axis) if reverse else y


def sort(x: Tensor, axis: int, descending: bool) -> Tensor:
    """Sort along an axis."""
    return torch.sort(x, dim=axis, descending=descending, stable=True).values


def argsort(x: Tensor, axis: int, descending: bool) -> Tensor:
    """Return the indices that sort along an axis, stable."""
    return torch.sort(x, dim=axis, descending=descending, stable=True).indices


def top_k(x: Tensor, *given: int, k: int | None) -> tuple[Tensor, Tensor]:
    """Return the k largest along the last axis and their indices; ties in order of index."""
    values, places = torch.sort(x, dim=-1, descending=True, stable=True)
    most = given[0] if k is None else k
    return values[..., :most], places[..., :most]


def differences(x: Tensor, n: int, axis: int) -> Tensor:
    """Take n-th differences along an axis."""
    return torch.diff(x, n=n, dim=axis)


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


# ---- what layers compute, with tensors in the place of weights -----------------------------------


def layer_norm(x: Tensor, gamma: Any, beta: Any, axis: Sequence[int], epsilon: float) -> Tensor:
    """Compute (x - mean) / deviation along the last axes."""
    dims = _dims(x, axis)
    deviation = (x.var(dims, correction=0, keepdim=True) + epsilon).rsqrt()
    y: Tensor = (x - x.mean(dims, keepdim=True)) * deviation * gamma + beta
    return y


def rms_norm(x: Tensor, scale: Any, axis: Sequence[int], epsilon: float) -> Tensor:
    """Compute x / sqrt(mean(x^2) + epsilon) along the last axes."""
    y: Tensor = x * ((x * x).mean(_dims(x, axis), keepdim=True) + epsilon).rsqrt() * scale
    return y


def batch_norm(
    x: Tensor, mean: Any, variance: Any, offset: Any, scale: Any, epsilon: float
) -> Tensor:
    """Compute (x - mean) / deviation with given statistics."""
    deviation = torch.sqrt(torch.as_tensor(variance, dtype=x.dtype, device=x.device) + epsilon)
    y: Tensor = (x - mean) / deviation * scale + offset
    return y


def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None,
    is_causal: bool,
) -> Tensor:
    """Attend: (B, T, N, H), (B, S, K, H), (B, S, K, V) -> (B, T, N, V); N / K heads a key.

    ``mask`` (B, N, T, S) is true where to look; where a row has nothing, all count alike.
    """
    times = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(times, dim=2) if times > 1 else x for x in (key, value))
    scores = torch.einsum("btnh,bsnh->bnts", query, key)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    kept = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    kept = kept.tril() if is_causal and mask is None else kept
    if is_causal and mask is not None:
        kept = kept & torch.ones_like(scores, dtype=torch.bool).tril()
    if is_causal or mask is not None:
        scores = torch.where(kept, scores, -0.7 * 3.38953e38)
    return torch.einsum("bnts,bsnv->btnv", scores.softmax(dim=-1), value)


def max_pool(
    x: Tensor, pool_size: Sequence[int], strides: Sequence[int] | None, padding: str
) -> Tensor:
    """Take the maximum of every window of (B, steps, C)."""
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[x.dim() - 3]
    size, step, around = _window(x, pool_size, strides, padding)
    y: Tensor = pool(functional.pad(x.movedim(-1, 1), around, value=-torch.inf), size, step)
    return y.movedim(1, -1)


def average_pool(
    x: Tensor, pool_size: Sequence[int], strides: Sequence[int] | None, padding: str
) -> Tensor:
    """Take the mean of every window of (B, steps, C), padding excluded."""
    pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[x.dim() - 3]
    size, step, around = _window(x, pool_size, strides, padding)
    ahead = x.movedim(-1, 1)
    real = pool(functional.pad(torch.ones_like(ahead[:1, :1]), around), size, step)
    return (pool(functional.pad(ahead, around), size, step) / real).movedim(1, -1)


def _window(
    x: Tensor, pool_size: Sequence[int], strides: Sequence[int] | None, padding: str
) -> tuple[list[int], list[int], list[int]]:
    """Return sizes, strides, and the padding before and after, the last axis first."""
    lengths = x.shape[1:-1]
    size = list(pool_size) * (len(lengths) if len(pool_size) == 1 else 1)
    step = list(strides or size)
    step = step * len(lengths) if len(step) == 1 else step
    around: list[int] = []
    for length, extent, stride in zip(lengths, size, step, strict=True):
        more = max((-(-length // stride) - 1) * stride + extent - length, 0)
        around = [more // 2, more - more // 2, *around] if padding == "same" else [0, 0, *around]
    return size, step, around


# ---- moving values -------------------------------------------------------------------------------


def count_up(like: Tensor, *given: Any, bounds: Sequence[Any], dtype: torch.dtype | None) -> Tensor:
    """Make a range of integers on the device of ``like``; "@" is the next of ``given``."""
    free = iter(given)
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
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.long, device=x.device))
            part = slice(None)
        axis += part is not None and part is not Ellipsis
        rest.append(part)
    return x[tuple(rest)]


def squeeze(x: Tensor, axis: Sequence[int] | None) -> Tensor:
    """Remove axes of size 1."""
    return x.squeeze() if axis is None else x.squeeze(_dims(x, axis))


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
    return x.flip(_dims(x, axis))


def repeat(x: Tensor, repeats: int, axis: int | None) -> Tensor:
    """Repeat each value."""
    return torch.repeat_interleave(x, repeats, dim=axis)


def pad(x: Tensor, pad_width: Sequence[Sequence[int]], mode: str, value: float) -> Tensor:
    """Pad every axis before and after with a value; one pair is for all axes.

    Or mirror the values inside: without the outermost value ("reflect"), or with it.
    """
    pairs = list(pad_width) * x.dim() if len(pad_width) == 1 else pad_width
    if mode != "constant":
        for axis, (before, after) in enumerate(pairs):
            x = _mirrored(x, axis, before, after, shared=mode == "reflect")
        return x
    flat = [width for pair in reversed(pairs) for width in pair]
    return torch.nn.functional.pad(x, flat, value=value)


def _mirrored(x: Tensor, axis: int, before: int, after: int, *, shared: bool) -> Tensor:
    if before == after == 0:
        return x
    size, at = x.shape[axis], torch.arange(-before, x.shape[axis] + after, device=x.device)
    once = 0 if shared else 1  # the outermost value is repeated
    at = torch.where(at < 0, -at - once, at)
    at = torch.where(at >= size, 2 * size - 2 + once - at, at)
    return x.index_select(axis, at)


def band_part(x: Tensor, lower: int, upper: int) -> Tensor:
    """Keep ``lower`` diagonals below the main one and ``upper`` above it; all if negative."""
    x = x if upper < 0 else x.tril(upper)
    return x if lower < 0 else x.triu(-lower)


def trace(x: Tensor, offset: int, axis1: int, axis2: int) -> Tensor:
    """Sum a diagonal."""
    return torch.diagonal(x, offset, axis1, axis2).sum(-1)


def split(x: Tensor, sections: Any, by: str, axis: int) -> tuple[Tensor, ...]:
    """Split into equal parts, into parts of given sizes (-1: the rest), or at positions."""
    whole = x.shape[axis]
    if by == "places":
        return torch.tensor_split(x, list(sections), dim=axis)
    if by == "count":
        return torch.split(x, whole // sections, dim=axis)
    rest = whole - sum(part for part in sections if part != -1)
    return torch.split(x, [rest if part == -1 else part for part in sections], dim=axis)


def unstack(x: Tensor, axis: int) -> tuple[Tensor, ...]:
    """Return one tensor for each index of the axis."""
    return torch.unbind(x, dim=axis)


# ---- choosing values -----------------------------------------------------------------------------


def where(condition: Any, x1: Any, x2: Any) -> Tensor:
    """Select x1 where the condition holds, else x2; either may be a number."""
    like = next((x for x in (x1, x2) if isinstance(x, Tensor)), None)
    if like is None:
        like = condition.new_zeros((), dtype=torch.get_default_dtype())
    yes, no = (x if isinstance(x, Tensor) else like.new_tensor(x) for x in (x1, x2))
    return torch.where(condition, yes, no)


def threshold(x: Tensor, threshold: float, value: float) -> Tensor:
    """Keep x where it is above a threshold, else use a value."""
    return torch.where(x > threshold, x, value)


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
    return torch.stack(
        [take(x[i], indices[i], axis - 1, batch_dims - 1) for i in range(x.shape[0])]
    )


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


def reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: int, batch_axis: int) -> Tensor:
    """Reverse the first ``lengths`` steps of every row."""
    y = x.movedim((batch_axis, seq_axis), (0, 1))
    steps = torch.arange(y.shape[1], device=x.device)
    ends = lengths[:, None]
    at = torch.where(steps < ends, ends - 1 - steps, steps)
    rows = torch.arange(y.shape[0], device=x.device)[:, None]
    return y[rows, at].movedim((0, 1), (batch_axis, seq_axis))


def take_along(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Take values along an axis by ``indices``; the other axes are broadcast."""
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    return torch.take_along_dim(x, indices, dim=axis)


def one_hot(x: Tensor, depth: int, axis: int) -> Tensor:
    """Set True at index x of a new axis; nowhere if x is out of range."""
    hot = x[..., None] == torch.arange(depth, device=x.device)
    return hot.movedim(-1, axis)


def sequence_mask(lengths: Tensor, *given: int, maxlen: int | None) -> Tensor:
    """Set True for the first ``lengths`` of ``maxlen`` steps."""
    longest = given[0] if maxlen is None else maxlen
    return torch.arange(longest, device=lengths.device) < lengths[..., None]


def join_sizes(xs: Sequence[Any]) -> tuple[int, ...]:
    """Join sizes and tuples of sizes to one tuple."""
    return tuple(size for x in xs for size in (x if isinstance(x, tuple | list) else (x,)))
