"""Verify an exported file: run it in a child process, with every padding and other lengths."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from keras2torch_birnn.comparison.outputs import FAILURES, compare
from keras2torch_birnn.comparison.report import ParityReport, report_of
from keras2torch_birnn.comparison.tolerance import Tolerance
from keras2torch_birnn.errors import InvalidModelFileError, K2TError, UsageError, in_file
from keras2torch_birnn.exporting import find_target
from keras2torch_birnn.exporting.child_process import run_exported
from keras2torch_birnn.exporting.target import EXPORT, Target
from keras2torch_birnn.golden import measure_by_model, origin
from keras2torch_birnn.reference.rounding import Measured, steadiest
from keras2torch_birnn.reference.sample_inputs import Drawn, candidates, draw_inputs
from keras2torch_birnn.saving.checkpoint import load
from keras2torch_birnn.spec import Array, ModelSpec
from keras2torch_birnn.suggestions import advise_extra, explain_missing

# Sizes of free axes, beside the first of them: fewer, and more, than where the graph was recorded.
LENGTHS = (1, 4, 23)

Measure = Callable[[Drawn], Measured]


def load_baseline(path: str | os.PathLike[str]) -> tuple[ModelSpec, Measure]:
    """Load what ``k2t convert`` wrote; return its spec, and a function that runs it in float64."""
    model = load(path)
    return origin(model).spec, measure_by_model(model)


def open_target(path: str | os.PathLike[str]) -> Target:
    """Return the target that an exported file is of.

    Raises:
        InvalidModelFileError: there is no such file, or it is something else.
    """
    with in_file(path):
        if not Path(path).is_file():
            advice = explain_missing(Path(path)) or EXPORT
            raise InvalidModelFileError("there is no such file", advice)
        target = find_target(path).load()
        if other := target.describe_other(Path(path)):
            raise InvalidModelFileError(*other)
        return target


def verify_exported(
    path: str | os.PathLike[str],
    baseline: tuple[ModelSpec, Measure],
    against: str,
    tolerance: Tolerance,
    *,
    steps: int,
    own_data: Iterable[Drawn] = (),
) -> ParityReport:
    """Compare an exported file with a baseline; each batch counts.

    against: the name of the baseline. steps: of free axes, see also ``LENGTHS``.

    Raises:
        UsageError: the runtime is not installed. InvalidModelFileError: as ``open_target``.
    """
    target = open_target(path)
    if reason := target.why_cannot_run():
        raise UsageError(reason, advise_extra("export"))
    spec, measure = baseline
    best, _ = steadiest(chain(own_data, candidates(spec, steps=steps, seed=1)), measure)
    chosen = [best, *_at_other_lengths(spec, measure, steps)]
    results = run_exported(Path(path), [one.drawn.arrays for one in chosen])
    comparisons = [
        compare(
            actual,
            one.outputs,
            one.roundings,
            tolerance,
            device=target.runtime,
            against=against,
            inputs=one.drawn.name,
        )
        for one, actual in zip(chosen, results, strict=True)
    ]
    return report_of(comparisons, (), ())


def _shapes(arrays: Sequence[Array]) -> list[tuple[int, ...]]:
    return [x.shape for x in arrays]


def _at_other_lengths(spec: ModelSpec, measure: Measure, steps: int) -> Iterator[Measured]:
    """Measure batches of other lengths, where axes are free and the model allows them."""
    known = [_shapes(draw_inputs(spec, steps=steps, seed=2))]
    for length in LENGTHS:
        arrays = draw_inputs(spec, steps=length, seed=2)
        if _shapes(arrays) in known:
            continue  # nothing is free, or not every size fits
        known.append(_shapes(arrays))
        try:
            measured = measure(Drawn(f"normal numbers, {length} steps", arrays))
        except (K2TError, *FAILURES):
            continue  # too short for a window of the model
        if measured.judged:
            yield measured
