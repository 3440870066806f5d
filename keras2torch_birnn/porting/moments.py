"""Mean and variance, as ports take them that standardize where Keras does not, or otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from keras2torch_birnn.spec import Array

Axes: TypeAlias = int | tuple[int, ...] | None
# x without its mean, and its variance -> x standardized
Divide: TypeAlias = Callable[[Array, Array], Array]


def center(axes: Axes, x: Array) -> Array:
    """Subtract the mean over these axes."""
    result: Array = x - x.mean(axis=axes, keepdims=True)
    return result


def compute_variance(axes: Axes, x: Array, *, free: int = 0) -> Array:
    """Compute the variance over these axes, of n - ``free`` values (``torch.var``: of n - 1).

    Raises:
        ValueError: there are too few values.
    """
    if x.mean(axis=axes, keepdims=True).size * (free + 1) > x.size:
        raise ValueError("too few values")
    variance: Array = x.var(axis=axes, keepdims=True, ddof=free)
    return variance


def divide_by_deviation(x: Array, variance: Array) -> Array:
    """Divide by the square root of the variance.

    Raises:
        ValueError: all values are the same.
    """
    if not variance.all():
        raise ValueError("all values are the same")
    result: Array = x / np.sqrt(variance)
    return result


def standardize(
    axes: Axes, x: Array, *, free: int = 0, divide: Divide = divide_by_deviation
) -> Array:
    """Subtract the mean over these axes, and ``divide`` by what follows from the variance."""
    x = np.asarray(x, np.float64)
    return divide(center(axes, x), compute_variance(axes, x, free=free))
