"""Rounding error of float32 arithmetic on given inputs, and inputs on which it is small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras2torch_birnn.reference import Trace, compute
from keras2torch_birnn.reference.context import OwnEquations
from keras2torch_birnn.reference.sample_inputs import Drawn
from keras2torch_birnn.spec import Array, ModelSpec

# Rounding in parts of the output's size: above the first a comparison says nothing; below the
# second there is no reason to look for better inputs; below the third nothing amplifies it.
UNJUDGEABLE, SMALL, PLAIN = 1e-3, 1e-5, 1e-6
# Further runs in float32 where something amplifies rounding: it grows from step to step then, and
# a single run may be lucky by any factor (a medaka model: 9e-6, and 1e-4 the next time).
REPEATS = 2
_BLOCK = 1 << 20  # values that are compared at a time


class Measured(NamedTuple):
    """Inputs, the exact outputs, and the rounding error of float32 arithmetic for each output.

    ``trace``: the reference's run, if it was the reference.
    """

    drawn: Drawn
    outputs: tuple[Any, ...]
    roundings: tuple[float, ...]
    trace: Trace | None = None

    @property
    def share(self) -> float:
        """The largest rounding error relative to its output's size."""
        return share_of(self.outputs, self.roundings)

    @property
    def judged(self) -> bool:
        """Tell whether rounding is small enough for a comparison on these inputs."""
        return self.share <= UNJUDGEABLE


def share_of(outputs: Sequence[Any], roundings: Sequence[float]) -> float:
    """Return the largest rounding error relative to its output's size."""
    parts = [
        rounding / largest if (largest := size(output)) else float("inf")
        for output, rounding in zip(outputs, roundings, strict=True)
        if rounding
    ]
    return max(parts, default=0.0)


def size(array: Any) -> float:
    """Return the largest finite absolute value, 0 if there is none."""
    values = np.abs(np.asarray(array, np.float64))
    return float(values.max(initial=0.0, where=np.isfinite(values)))


def difference(a: Any, b: Any) -> float:
    """Return the largest absolute difference; NaN in both is none, in one an infinite one."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return float("inf")
    a, b = a.reshape(-1), b.reshape(-1)
    blocks = range(0, max(1, a.size), _BLOCK)  # of a few: they take a few times their memory
    apart = (distance(a[at : at + _BLOCK], b[at : at + _BLOCK]) for at in blocks)
    return max(float(one.max(initial=0.0)) for one in apart)


def distance(actual: Array, expected: Array) -> Array:
    """Compute |actual - expected|: 0 where both are NaN, infinite where one is."""
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(all="ignore"):
        apart: Array = np.where(same, 0.0, np.abs(a - b))
    return np.nan_to_num(apart, nan=np.inf, posinf=np.inf)


def differences(a: Sequence[Any], b: Sequence[Any]) -> tuple[float, ...]:
    """Return the largest absolute difference of each output."""
    return tuple(difference(x, y) for x, y in zip(a, b, strict=True))


def by_reference(
    spec: ModelSpec,
    drawn: Drawn,
    own: OwnEquations | None = None,
    *,
    scans: bool = False,
    keep: bool = True,
) -> Measured:
    """Measure with the reference in both precisions; the other options: see ``compute``."""
    options: dict[str, Any] = {} if own is None else {"own": own}
    trace = compute(spec, drawn.arrays, scans=scans, keep=keep, **options)

    def rounded(nudge: Callable[[Array], Array] | None) -> tuple[float, ...]:
        options["nudge"] = nudge
        single = compute(spec, drawn.arrays, dtype=np.float32, keep=False, **options).outputs
        return differences(single, trace.outputs)

    roundings = rounded(None)
    if PLAIN < share_of(trace.outputs, roundings) <= UNJUDGEABLE:
        more = [rounded(nudge_by(np.float32, seed)) for seed in range(REPEATS)]
        roundings = tuple(map(max, zip(roundings, *more, strict=True)))
    return Measured(drawn, trace.outputs, roundings, trace)


def nudge_by(kind: type[np.floating[Any]], seed: int) -> Callable[[Array], Array]:
    """Make a function that moves every number by one unit in the last place, up or down."""
    rng = np.random.default_rng(seed)
    last_place = np.finfo(kind).eps

    def nudge(x: Array) -> Array:
        signs = (rng.integers(0, 2, x.shape) * 2 - 1).astype(kind)
        moved: Array = x * (1 + last_place * signs)
        return moved

    return nudge


def steadiest(
    drawn: Iterable[Drawn], measure: Callable[[Drawn], Measured]
) -> tuple[Measured, tuple[Measured, ...]]:
    """Return the first inputs with small rounding errors, or the best ones; and all tried.

    Rounding may be too large on all of them (``Measured.judged``).
    """
    tried: list[Measured] = []
    for one in drawn:
        tried.append(measure(one))
        if tried[-1].share <= SMALL:
            return tried[-1], tuple(tried)
    return min(tried, key=lambda one: one.share), tuple(tried)
