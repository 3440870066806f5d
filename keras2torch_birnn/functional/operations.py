"""Keras' operations for which torch has no function of the same meaning, under Keras' names.

Every one is called from a model's code, so each says what it does and keeps to plain tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from keras2torch_birnn.functional.movement import as_tensor, dims_of

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


def norm(x: Tensor, axis: Sequence[int] | None, keepdims: bool) -> Tensor:
    """Compute norms, each the root of the sum of squares."""
    length: Tensor = torch.linalg.vector_norm(x, 2.0, dims_of(x, axis), keepdim=keepdims)
    return length


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


def max_pool1d(x: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pool the last axis as one of two: in torch's max_pool1d ``torch.export`` fixes its size."""
    return functional.max_pool2d(x.unsqueeze(-2), (1, *size), (1, *stride)).squeeze(-2)
