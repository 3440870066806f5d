"""How far results are apart, where the most, and what is allowed. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.reference.rounding import difference, distance, size
from keras2torch_birnn.spec import Array

ATOL, RTOL = 1e-5, 1e-4
# float64 arithmetic keeps about 1e-16; sums over thousands of terms lose some of it.
ATOL_FLOAT64, RTOL_FLOAT64 = 1e-9, 1e-9
# A result may be this many times as far from exact as the baseline is.
ALLOWANCE = 4.0
_NAMES = {1: ("row",), 2: ("row", "feature"), 3: ("row", "step", "feature")}


@dataclass(frozen=True)
class Tolerance:
    """Allowed error: ``atol + rtol |y|``, or ``allowance`` times the baseline's rounding error."""

    atol: float
    rtol: float
    allowance: float


EXACT = Tolerance(ATOL_FLOAT64, RTOL_FLOAT64, 0.0)


def resolve_tolerance(atol: float | None, rtol: float | None) -> Tolerance:
    """Return the default tolerance, or exactly the one that the user gave.

    Raises:
        UsageError: a tolerance is not a finite number of at least 0.
    """
    for name, value in (("atol", atol), ("rtol", rtol)):
        if value is not None and not (0 <= value < float("inf")):
            raise UsageError(f"{name} {value}: a number of at least 0 is expected")
    own = atol is None and rtol is None
    return Tolerance(
        ATOL if atol is None else atol, RTOL if rtol is None else rtol, ALLOWANCE if own else 0.0
    )


def max_errors(actual: Sequence[Any], expected: Sequence[Any]) -> tuple[float, float]:
    """Return the largest absolute error, and that divided by the largest expected value."""
    if len(actual) != len(expected):
        return float("inf"), float("inf")
    absolute = max((difference(a, b) for a, b in zip(actual, expected, strict=True)), default=0.0)
    largest = max(map(size, expected), default=0.0)
    return absolute, absolute / largest if largest else absolute


def close(actual: Any, expected: Any, atol: float, rtol: float) -> bool:
    """Return whether |actual - expected| <= atol + rtol |expected| everywhere; NaN equals NaN."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return actual.shape == expected.shape and bool(
        np.allclose(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
    )


def all_close(
    actual: Sequence[Array],
    expected: Sequence[Array],
    roundings: Sequence[float],
    tolerance: Tolerance,
) -> bool:
    """Tell whether every output is close, or as close as the tolerance allows for rounding."""
    return len(actual) == len(expected) and all(
        close(a, b, tolerance.atol, tolerance.rtol)
        or difference(a, b) <= tolerance.allowance * rounding
        for a, b, rounding in zip(actual, expected, roundings, strict=True)
    )


def describe_index(index: tuple[int, ...]) -> str:
    """Describe an index: ``row 2, step 4, feature 16``; spatial axes have no names."""
    if len(index) in _NAMES:
        names = zip(_NAMES[len(index)], index, strict=True)
        return ", ".join(f"{name} {number}" for name, number in names)
    return f"row {index[0]}, place {list(index[1:])}" if index else "the only value"


def find_worst(actual: Sequence[Array], expected: Sequence[Array]) -> tuple[int, tuple[int, ...]]:
    """Find the output with the largest error, and the index in it; () if shapes differ."""
    found: tuple[float, int, tuple[int, ...]] = (-1.0, 0, ())
    for number, (a, b) in enumerate(zip(actual, expected, strict=False)):
        if a.shape != b.shape or not a.size:
            continue
        apart = distance(a, b)
        place = int(apart.argmax())
        if (largest := float(apart.flat[place])) > found[0]:
            found = largest, number, tuple(map(int, np.unravel_index(place, apart.shape)))
    return found[1:]
