"""Locate the largest error in an output, as an index and in words. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras2torch_birnn.comparison.report import ErrorMap
from keras2torch_birnn.reference.rounding import distance
from keras2torch_birnn.spec import Array

_NAMES = {1: ("row",), 2: ("row", "feature"), 3: ("row", "step", "feature")}


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


def map_worst_row(name: str, apart: Array, mask: Array | None) -> ErrorMap:
    """Map the errors (B, T, ...) of the row with the largest one. One row, as the pattern counts.

    mask: (B, T), false at steps that are left out.
    """
    folded = apart.reshape(*apart.shape[:2], -1)
    row = int(np.nanargmax(np.fmax.reduce(folded, axis=(1, 2), initial=0.0)))
    masked = () if mask is None else tuple(map(int, np.flatnonzero(~mask[row])))
    return ErrorMap(name, np.asarray(folded[row]), row, masked)
