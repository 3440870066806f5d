"""Map the errors of a recurrent layer by step and unit: for pictures, not for the verdict.

Where the layer merges its directions or returns its last step alone, it runs once more with every
step kept and nothing merged, and so does the reference.

B batch, T time, H units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from keras2torch_birnn.comparison.report import ErrorMap
from keras2torch_birnn.reference.rounding import distance
from keras2torch_birnn.spec import Array, LayerSpec
from keras2torch_birnn.verification.recurrent_check import RecurrentCall, map_worst_row, name_half

_HOW = "in sequence"
_APART = {"merge_mode": None, "return_sequences": True, "return_state": False, "stateful": False}


def map_sequence(
    call: RecurrentCall, actual: Sequence[Array], expected: Sequence[Array]
) -> Iterator[ErrorMap]:
    """Yield the errors over the sequence (T, H): of a merged output, and of each direction."""
    merge = call.layer.config["merge_mode"] if len(call.scans) == 2 else None
    if call.halves[0].config["return_sequences"]:
        pairs = list(zip(actual, expected, strict=False))
        if merge == "concat":
            halves = (np.array_split(array, 2, axis=-1) for array in pairs[0])
            yield from _map_halves(call, list(zip(*halves, strict=True)))
            return
        if merge is None:
            yield from _map_halves(call, pairs[: len(call.scans)])
            return
        yield from _map(call, f"both halves, {merge}, ", *pairs[0])
    yield from _map_halves(call, list(zip(*_run_apart(call), strict=True)))


def _map_halves(call: RecurrentCall, pairs: Sequence[tuple[Array, Array]]) -> Iterator[ErrorMap]:
    for number, (actual, expected) in enumerate(pairs):
        yield from _map(call, name_half(number) if len(pairs) == 2 else "", actual, expected)


def _map(call: RecurrentCall, name: str, actual: Array, expected: Array) -> Iterator[ErrorMap]:
    if actual.shape == expected.shape:
        yield map_worst_row(f"{name}{_HOW}", distance(actual, expected), call.scans[0].mask)


def _run_apart(call: RecurrentCall) -> tuple[list[Array], list[Array]]:
    """Return the outputs of all steps of each direction, as computed and as expected."""
    scan, plan = call.scans[0], call.module.plan
    call.module.plan = replace(plan, **_APART)
    try:
        actual = call.run_module()
    finally:
        call.module.plan = plan
    trace = call.run_reference(scan.x, scan.mask, call.start, layer=_apart(call.layer))
    return actual, list(trace.outputs)


def _apart(layer: LayerSpec) -> LayerSpec:
    """Return a recurrent layer that gives all steps, and both halves if it has two."""
    config = {name: _APART.get(name, value) for name, value in layer.config.items()}
    parts = {
        name: _apart(part) if name.endswith("ward_layer") else part
        for name, part in layer.parts.items()
    }
    return replace(layer, config=config, parts=parts)
