"""Keras' operations for which torch has no function of the same meaning, under Keras' names.

Every one is called from a model's code, so each says what it does and keeps to plain tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from keras2torch_birnn.functional.movement import as_tensor, dims_of, same_padding

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


def multiply_no_nan(x1: Tensor, x2: Tensor) -> Tensor:
    """Compute x1 x2, and 0 where x2 is 0, whatever x1 is."""
    return torch.where(x2 == 0, 0.0, x1 * x2)


def xlogy(x1: Tensor, x2: Tensor) -> Tensor:
    """Compute x1 log(x2), and 0 where x1 is 0."""
    return torch.where(x1 == 0, 0.0, x1 * torch.log(x2))


def xlog1py(x1: Tensor, x2: Tensor) -> Tensor:
    """Compute x1 log(1 + x2), and 0 where x1 is 0."""
    return torch.where(x1 == 0, 0.0, x1 * torch.log1p(x2))


def xdivy(x1: Tensor, x2: Tensor) -> Tensor:
    """Compute x1 / x2, and 0 where x1 is 0."""
    return torch.where(x1 == 0, 0.0, x1 / x2)


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


def arctan2(x1: Any, x2: Any) -> Tensor:
    """Return the angle of (x2, x1)."""
    like = x1 if isinstance(x1, Tensor) else x2
    return torch.atan2(as_tensor(x1, like), as_tensor(x2, like))


def logaddexp(x1: Any, x2: Any) -> Tensor:
    """Compute log(exp(x1) + exp(x2))."""
    like = x1 if isinstance(x1, Tensor) else x2
    return torch.logaddexp(as_tensor(x1, like), as_tensor(x2, like))


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


def moments(x: Tensor, axis: Sequence[int] | None, keepdims: bool) -> tuple[Tensor, Tensor]:
    """Compute mean and variance along axes."""
    dims = dims_of(x, axis)
    return x.mean(dims, keepdim=keepdims), x.var(dims, correction=0, keepdim=keepdims)


def average(x: Tensor, weights: Any, axis: int | None) -> Tensor:
    """Compute the mean of x with weights, which are broadcast."""
    spread = as_tensor(weights, x).to(x.dtype).broadcast_to(x.shape)
    dims = dims_of(x, axis)
    return torch.sum(x * spread, dims) / torch.sum(spread, dims)


def normalize(x: Tensor, axis: Sequence[int] | None, smallest: float) -> Tensor:
    """Divide x by its norm along axes, or by a smallest norm."""
    length = (x * x).sum(dims_of(x, axis), keepdim=True).sqrt()
    return x / length.clamp(min=smallest)


def norm(x: Tensor, order: int | str, axis: Sequence[int] | None, keepdims: bool) -> Tensor:
    """Compute norms: sum of absolute values (1), root of squares (2), largest ("inf")."""
    length: Tensor = torch.linalg.vector_norm(x, float(order), dims_of(x, axis), keepdim=keepdims)
    return length


def clip_by_norm(x: Tensor, axis: Sequence[int] | None, largest: float) -> Tensor:
    """Scale x down to the given norm where it is larger."""
    length = (x * x).sum(dims_of(x, axis), keepdim=True).sqrt()
    return x * largest / length.clamp(min=largest)


def count_nonzero(x: Tensor, axis: Sequence[int] | None, keepdims: bool) -> Tensor:
    """Count the values that are not zero."""
    return (x != 0).sum(dims_of(x, axis), keepdim=keepdims)


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


# ---- what layers compute, with tensors in the place of weights -----------------------------------


def layer_norm(x: Tensor, gamma: Any, beta: Any, axis: Sequence[int], epsilon: float) -> Tensor:
    """Compute (x - mean) / deviation along the last axes."""
    dims = dims_of(x, axis)
    deviation = (x.var(dims, correction=0, keepdim=True) + epsilon).rsqrt()
    y: Tensor = (x - x.mean(dims, keepdim=True)) * deviation * gamma + beta
    return y


def rms_norm(x: Tensor, scale: Any, axis: Sequence[int], epsilon: float) -> Tensor:
    """Compute x / sqrt(mean(x^2) + epsilon) along the last axes."""
    y: Tensor = x * ((x * x).mean(dims_of(x, axis), keepdim=True) + epsilon).rsqrt() * scale
    return y


def batch_norm(
    x: Tensor, mean: Any, variance: Any, offset: Any, scale: Any, epsilon: float
) -> Tensor:
    """Compute (x - mean) / deviation with given statistics."""
    deviation = torch.sqrt(as_tensor(variance, x) + epsilon)
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
    if is_causal:
        before = torch.ones_like(scores, dtype=torch.bool).tril()
        mask = before if mask is None else mask & before
    if mask is not None:
        scores = torch.where(mask, scores, -0.7 * 3.38953e38)
    return torch.einsum("bnts,bsnv->btnv", scores.softmax(dim=-1), value)


def max_pool1d(x: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pool the last axis as one of two: in torch's max_pool1d ``torch.export`` fixes its size."""
    return functional.max_pool2d(x.unsqueeze(-2), (1, *size), (1, *stride)).squeeze(-2)


def max_pool(
    x: Tensor, pool_size: Sequence[int], strides: Sequence[int] | None, padding: str
) -> Tensor:
    """Take the maximum of every window of (B, steps, C)."""
    pool = (max_pool1d, functional.max_pool2d, functional.max_pool3d)[x.dim() - 3]
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
        pair = same_padding(length, extent, stride) if padding == "same" else (0, 0)
        around = [*pair, *around]
    return size, step, around
