"""Check a recurrent layer twice, so that the result does not depend on the sequence length.

First in sequence, over the steps for which a change of one unit in the last place stays small: some
trained layers double that change at every step, and after fifty steps the outputs of a right and a
wrong layer differ equally. Then each step alone, from the reference's own state: all steps are
computed at once, as the rows of a batch with one step.

B batch, T time, H units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keras2torch_birnn.comparison.report import ErrorMap, LayerParity
from keras2torch_birnn.comparison.tolerance import (
    EXACT,
    all_close,
    describe_index,
    find_worst,
    max_errors,
)
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.plugins.checks import EQUATION_OR_MODULE
from keras2torch_birnn.reference import Trace, compute_recurrent
from keras2torch_birnn.reference.context import Scan
from keras2torch_birnn.reference.rounding import distance, nudge_by
from keras2torch_birnn.rnn.layer import RnnCall
from keras2torch_birnn.spec import Array, Generation, LayerSpec

# Steps are judged while a change of one unit in the last place moves the output by at most this:
# a correct sum is about ten such units off, still well below the tolerance of 1e-9.
STEADY = 1e-12


@dataclass(frozen=True)
class RecurrentCall:
    """One call of a recurrent layer: the converted module, the layer, the reference's scans."""

    path: str
    module: Any
    layer: LayerSpec
    scans: tuple[Scan, ...]
    x: Tensor
    mask: Tensor | None
    initial_state: Any
    generation: Generation

    @property
    def halves(self) -> tuple[LayerSpec, ...]:
        """Layers of the directions, in the order of the scans."""
        parts = self.layer.parts
        both = (parts["forward_layer"], parts["backward_layer"]) if "forward_layer" in parts else ()
        return both or (self.layer,)

    @property
    def start(self) -> tuple[Array, ...]:
        """Initial states of all directions, forward first."""
        return tuple(state for scan in self.scans for state in scan.start)

    def run_module(self, count: int | None = None) -> list[Array]:
        """Return the module's outputs for the first ``count`` steps of the reference's input."""
        options: dict[str, Any] = {}
        if self.mask is not None:
            options["mask"] = self.mask[:, :count]
        if self.initial_state is not None:
            options["initial_state"] = self.initial_state
        x = torch.from_numpy(self.scans[0].x[:, :count].copy())
        carried, self.module.carried = self.module.carried, None  # of the call over all steps
        try:
            return [tensor.numpy() for tensor in flat(self.module(x, **options))]
        finally:
            self.module.carried = carried

    def run_reference(
        self,
        x: Array,
        mask: Array | None,
        start: tuple[Array, ...],
        *,
        nudged: bool = False,
        layer: LayerSpec | None = None,
    ) -> Trace:
        """Run the reference's layer. nudged: every step by one unit in the last place."""
        nudge = nudge_by(np.float64, 0) if nudged else None
        return compute_recurrent(
            layer or self.layer,
            x,
            mask,
            start,
            self.generation,
            own=EQUATION_OR_MODULE,
            nudge=nudge,
        )


def recurrent_parity(call: RecurrentCall, whole: LayerParity) -> LayerParity:
    """Judge a recurrent layer; ``whole``: the comparison of its output over all steps."""
    steps = call.scans[0].x.shape[1]
    count = _steady_steps(call)
    if count == steps:
        where = "" if whole.ok else _describe_place(call, whole.worst_index, whole.where)
        sequence = replace(whole, where=where)
    else:
        count, sequence = _judge_beginning(call, count)
    judged, each = _judge_each_step(call)
    total = len(call.scans[0].x) * steps
    how = "whole, and each step" if count == steps else f"{count} of {steps} steps in sequence"
    how += ", each step" if count < steps else ""
    how += f" ({judged} of {total})" if judged < total else ""
    how += " from the reference's own state"
    step_is_worse = each.max_abs_error > sequence.max_abs_error
    first = each if not each.ok or (sequence.ok and step_is_worse) else sequence
    return replace(
        whole,
        max_abs_error=max(sequence.max_abs_error, each.max_abs_error),
        max_rel_error=max(sequence.max_rel_error, each.max_rel_error),
        worst_index=first.worst_index,
        ok=sequence.ok and each.ok,
        where=first.where,
        judged=how,
        maps=each.maps,
    )


def _not_judged(call: RecurrentCall, reason: str) -> LayerParity:
    """Report a layer as wrong because its numbers cannot be compared."""
    return LayerParity(call.path, float("inf"), float("inf"), (), False, reason)


# ---- in sequence ---------------------------------------------------------------------------------


def _steady_steps(call: RecurrentCall, count: int | None = None) -> int:
    """Count the steps, in each direction's order, that stay steady when every step is nudged.

    ``count``: look at the first ``count`` steps of the input only; None for all.
    """
    scans = call.scans if count is None else _compute_prefix(call, count)[1]
    x, mask = scans[0].x, scans[0].mask
    nudged = call.run_reference(x, mask, call.start, nudged=True).scans.values()
    return min(
        _first_unsteady(one, other, backward=half.config["go_backwards"])
        for one, other, half in zip(scans, nudged, call.halves, strict=True)
    )


def _first_unsteady(scan: Scan, nudged: Scan, *, backward: bool) -> int:
    pairs = zip((scan.output, *scan.after), (nudged.output, *nudged.after), strict=True)
    steady = np.logical_and.reduce([_is_steady(a, b) for a, b in pairs])  # (B, T)
    if scan.mask is not None:
        steady |= ~scan.mask
    every = steady.all(axis=0)
    in_order = every[::-1] if backward else every
    return int(in_order.argmin()) if not in_order.all() else len(in_order)


def _is_steady(exact: Array, nudged: Array) -> Array:
    """Mark the (B, T) steps that changed only a little in all their units."""
    with np.errstate(all="ignore"):
        moved = distance(nudged, exact) > STEADY * (1 + np.abs(exact))
    return np.logical_not(moved.reshape(*exact.shape[:2], -1).any(axis=2))


def _compute_prefix(call: RecurrentCall, count: int) -> tuple[Any, tuple[Scan, ...]]:
    """Compute the reference's outputs and scans of the first ``count`` steps."""
    scan = call.scans[0]
    mask = None if scan.mask is None else scan.mask[:, :count]
    trace = call.run_reference(scan.x[:, :count], mask, call.start)
    return trace.outputs, tuple(trace.scans.values())


def _judge_beginning(call: RecurrentCall, count: int) -> tuple[int, LayerParity]:
    """Judge the first steps, halving ``count`` until every direction stays steady on them."""
    count = max(count, 1)
    while count > 1 and _steady_steps(call, count) < count:
        count //= 2
    if not _has_same_input(call):
        return count, _not_judged(call, "reads another input")
    actual = call.run_module(count)
    expected, _ = _compute_prefix(call, count)
    ok = all_close(actual, expected, [0.0] * len(expected), EXACT)
    number, index = find_worst(actual, expected)
    where = "" if ok else _describe_place(call, index, f"output {number}, {describe_index(index)}")
    return count, LayerParity(call.path, *max_errors(actual, expected), index, ok, where)


def _has_same_input(call: RecurrentCall) -> bool:
    """Return whether the converted layer received the same input and mask as the reference's."""
    scan = call.scans[0]
    every = np.ones(scan.x.shape[:2], bool)
    mask = every if call.mask is None else call.mask.bool().numpy().reshape(every.shape)
    expected = every if scan.mask is None else scan.mask
    return all_close([call.x.numpy()], [scan.x], [0.0], EXACT) and np.array_equal(mask, expected)


def _describe_place(call: RecurrentCall, index: tuple[int, ...], otherwise: str) -> str:
    """Describe a place in a recurrent layer's first output: half, unit, step, row."""
    sequences = call.halves[0].config["return_sequences"]
    units = call.scans[0].output.shape[-1]
    if call.scans[0].output.ndim != 3 or len(index) != 2 + sequences:
        return otherwise
    half, unit = "", index[-1]
    if len(call.scans) == 2 and call.layer.config["merge_mode"] == "concat":
        half, unit = name_half(unit >= units), unit - units * (unit >= units)
    step = f", step {index[1]}" if sequences else ""
    return f"{half}unit {unit}{step}, row {index[0]}"


def name_half(backward: object) -> str:
    """Name a direction, in front of what is said of it."""
    return f"{'backward' if backward else 'forward'} half, "


# ---- each step from the reference's own state ----------------------------------------------------


def _judge_each_step(call: RecurrentCall) -> tuple[int, LayerParity]:
    """Run all steps as rows of one step; return the number of judged steps, and the result."""
    x = _fold_time(call.scans[0].x)[:, np.newaxis]
    start = [tuple(map(_fold_time, scan.before)) for scan in call.scans]
    flat_start = tuple(state for states in start for state in states)
    nudged = call.run_reference(x, None, flat_start, nudged=True).scans.values()
    begin = tuple(tuple(map(_to_tensor, states)) for states in start)
    outputs, states = call.module.run_sequence(RnnCall(_to_tensor(x), None, begin))
    found: list[LayerParity] = []
    judged = len(x)
    for number, (scan, other) in enumerate(zip(call.scans, nudged, strict=True)):
        expected = [_fold_time(scan.output), *map(_fold_time, scan.after)]
        moved = [other.output[:, 0], *(state[:, 0] for state in other.after)]
        pairs = zip(expected, moved, strict=True)
        steady = np.logical_and.reduce([_is_steady(a[:, None], b[:, None])[:, 0] for a, b in pairs])
        judged = min(judged, int(steady.sum()))
        actual = [outputs[number][:, 0].numpy(), *(state.numpy() for state in states[number])]
        found.append(_judge_steps_of_half(call, number, actual, expected, steady))
    if not judged:
        return 0, LayerParity(call.path, 0.0, 0.0, (), False, "no step of it can be judged")
    worst = max(found, key=lambda one: (not one.ok, one.max_abs_error))
    return judged, replace(worst, maps=tuple(one for half in found for one in half.maps))


def _judge_steps_of_half(
    call: RecurrentCall, number: int, actual: list[Array], expected: list[Array], steady: Array
) -> LayerParity:
    """Compare one direction's steps, and describe where they differ."""
    if [a.shape for a in actual] != [b.shape for b in expected]:
        return _not_judged(call, "a state of another shape")
    chosen = np.flatnonzero(steady)
    maps = (_map_steps(call, number, actual[0], expected[0], steady),)
    actual, expected = [a[chosen] for a in actual], [b[chosen] for b in expected]
    wrong = [i for i, pair in enumerate(zip(actual, expected, strict=True)) if not _equal(*pair)]
    part = wrong[0] if wrong else 0  # the output comes before the states
    _, index = find_worst(actual[part : part + 1], expected[part : part + 1])
    if not index:
        return LayerParity(call.path, 0.0, 0.0, (), not wrong, maps=maps)
    row, step = divmod(int(chosen[index[0]]), call.scans[0].x.shape[1])
    halves = len(call.scans) == 2
    shift = 0
    if halves and number and call.layer.config["merge_mode"] == "concat":
        shift = call.scans[0].output.shape[-1]
    at = index[1:]
    unit = f"unit {at[0]}" if len(at) == 1 else f"place {list(at)}"
    state = f"state {part - 1}, " if part > 1 else ""
    where = f"{name_half(number) if halves else ''}{state}{unit}, step {step}" if wrong else ""
    sequences = call.halves[0].config["return_sequences"]
    full = (row, *([step] if sequences else []), *at[:-1], at[-1] + shift)
    return LayerParity(call.path, *max_errors(actual, expected), full, not wrong, where, maps=maps)


def _map_steps(
    call: RecurrentCall, number: int, actual: Array, expected: Array, steady: Array
) -> ErrorMap:
    """Return one direction's errors by step and unit; steps that are not judged are NaN."""
    apart = distance(actual, expected).reshape(len(actual), -1)
    apart[~steady] = np.nan
    scan, half = call.scans[0], name_half(number) if len(call.scans) == 2 else ""
    by_step = apart.reshape(*scan.x.shape[:2], -1)
    return map_worst_row(f"{half}each step alone", by_step, scan.mask)


def map_worst_row(name: str, apart: Array, mask: Array | None) -> ErrorMap:
    """Map the errors (B, T, ...) of the row with the largest one. One row, as the pattern counts.

    mask: (B, T), false at steps that are left out.
    """
    folded = apart.reshape(*apart.shape[:2], -1)
    row = int(np.nanargmax(np.fmax.reduce(folded, axis=(1, 2), initial=0.0)))
    masked = () if mask is None else tuple(map(int, np.flatnonzero(~mask[row])))
    return ErrorMap(name, np.asarray(folded[row]), row, masked)


def _equal(actual: Array, expected: Array) -> bool:
    return all_close([actual], [expected], [0.0], EXACT)


def _fold_time(array: Array) -> Array:
    """Fold (B, T, ...) -> (B T, ...)."""
    return array.reshape(-1, *array.shape[2:])


def _to_tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
