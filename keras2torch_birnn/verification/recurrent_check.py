"""A recurrent layer is judged twice, so that the length of the sequence cannot matter.

In sequence, over as many steps as a change of one unit in the last place stays small: some trained
layers double it at every step, and after fifty of them a right and a wrong layer look the same.
And every step once, from the reference's own state: all steps at once, as rows of one step.

B batch, T time, H units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keras2torch_birnn.conversion import flat
from keras2torch_birnn.reference import compute_recurrent
from keras2torch_birnn.reference.context import Scan
from keras2torch_birnn.reference.rounding import nudge_by
from keras2torch_birnn.rnn.call import RnnCall
from keras2torch_birnn.spec import Array, Generation, LayerSpec
from keras2torch_birnn.verification.closeness import EXACT, all_close, error
from keras2torch_birnn.verification.report import LayerParity
from keras2torch_birnn.verification.words import distance, in_words, worst_of

# How far a change of one unit in the last place may carry for a step to be judged: an honest sum
# is some ten of those off, which leaves room below the tolerance of 1e-9.
STEADY = 1e-12


@dataclass(frozen=True)
class Called:
    """One call of a recurrent layer: the converted module, the layer, the reference's scans."""

    module: Any
    layer: LayerSpec
    scans: tuple[Scan, ...]
    x: Tensor
    mask: Tensor | None
    initial_state: Any

    @property
    def halves(self) -> tuple[LayerSpec, ...]:
        """The directions as layers, in the order of the scans."""
        parts = self.layer.parts
        both = (parts["forward_layer"], parts["backward_layer"]) if "forward_layer" in parts else ()
        return both or (self.layer,)

    @property
    def start(self) -> tuple[Array, ...]:
        """The states that all directions begin with, forward first."""
        return tuple(state for scan in self.scans for state in scan.start)


@dataclass(frozen=True)
class _Finding:
    absolute: float
    relative: float
    index: tuple[int, ...]
    ok: bool
    where: str


def recurrent_parity(called: Called, generation: Generation, whole: LayerParity) -> LayerParity:
    """Judge a recurrent layer; ``whole`` is its output over all steps against the reference's."""
    steps = called.scans[0].x.shape[1]
    count = _steady_steps(called, generation)
    if count == steps:
        where = "" if whole.ok else _in_output(called, whole.worst_index, whole.where)
        sequence = _Finding(
            whole.max_abs_error, whole.max_rel_error, whole.worst_index, whole.ok, where
        )
    else:
        count, sequence = _begin(called, generation, count)
    judged, each = _every_step(called, generation)
    total = len(called.scans[0].x) * steps
    said = "whole, and each step" if count == steps else f"{count} of {steps} steps in sequence"
    said += ", each step" if count < steps else ""
    said += f" ({judged} of {total})" if judged < total else ""
    said += " from the reference's own state"
    first = each if not each.ok or (sequence.ok and each.absolute > sequence.absolute) else sequence
    return replace(
        whole,
        max_abs_error=max(sequence.absolute, each.absolute),
        max_rel_error=max(sequence.relative, each.relative),
        worst_index=first.index,
        ok=sequence.ok and each.ok,
        where=first.where,
        judged=said,
    )


# ---- in sequence ---------------------------------------------------------------------------------


def _steady_steps(called: Called, generation: Generation, count: int | None = None) -> int:
    """How many steps, as each direction reads them, stay steady when every step is nudged.

    ``count``: of the first so many steps of the input; None for all.
    """
    scans = called.scans if count is None else _prefix(called, generation, count)[1]
    x, mask = scans[0].x, scans[0].mask
    nudged = compute_recurrent(
        called.layer, x, mask, called.start, generation, nudge=nudge_by(np.float64, 0)
    ).scans.values()
    return min(
        _first_unsteady(one, other, backward=half.config["go_backwards"])
        for one, other, half in zip(scans, nudged, called.halves, strict=True)
    )


def _first_unsteady(scan: Scan, nudged: Scan, *, backward: bool) -> int:
    pairs = zip((scan.output, *scan.after), (nudged.output, *nudged.after), strict=True)
    steady = np.logical_and.reduce([_steady(a, b) for a, b in pairs])  # (B, T)
    if scan.mask is not None:
        steady |= ~scan.mask
    every = steady.all(axis=0)
    in_order = every[::-1] if backward else every
    return int(in_order.argmin()) if not in_order.all() else len(in_order)


def _steady(exact: Array, nudged: Array) -> Array:
    """Which of (B, T) steps changed only a little in all their units."""
    with np.errstate(all="ignore"):
        moved = distance(nudged, exact) > STEADY * (1 + np.abs(exact))
    return np.logical_not(moved.reshape(*exact.shape[:2], -1).any(axis=2))


def _prefix(called: Called, generation: Generation, count: int) -> tuple[Any, tuple[Scan, ...]]:
    """The reference's outputs and scans of the first steps alone."""
    scan = called.scans[0]
    mask = None if scan.mask is None else scan.mask[:, :count]
    trace = compute_recurrent(called.layer, scan.x[:, :count], mask, called.start, generation)
    return trace.outputs, tuple(trace.scans.values())


def _begin(called: Called, generation: Generation, count: int) -> tuple[int, _Finding]:
    """Judge the longest beginning of the input found on which every direction stays steady."""
    count = max(count, 1)
    while count > 1 and _steady_steps(called, generation, count) < count:
        count //= 2
    scan = called.scans[0]
    if not _reads_the_same(called):
        return count, _Finding(float("inf"), float("inf"), (), False, "reads another input")
    options: dict[str, Any] = {}
    if called.mask is not None:
        options["mask"] = called.mask[:, :count]
    if called.initial_state is not None:
        options["initial_state"] = called.initial_state
    carried, called.module.carried = called.module.carried, None  # of the call over all steps
    result = called.module(torch.from_numpy(scan.x[:, :count].copy()), **options)
    called.module.carried = carried
    got = [tensor.numpy() for tensor in flat(result)]
    wanted, _ = _prefix(called, generation, count)
    ok = all_close(got, wanted, [0.0] * len(wanted), EXACT)
    number, index = worst_of(got, wanted)
    where = "" if ok else _in_output(called, index, f"output {number}, {in_words(index)}")
    return count, _Finding(*error(got, wanted), index, ok, where)


def _reads_the_same(called: Called) -> bool:
    """Whether the converted layer was given what the reference's was."""
    scan = called.scans[0]
    every = np.ones(scan.x.shape[:2], bool)
    mask = every if called.mask is None else called.mask.bool().numpy().reshape(every.shape)
    wanted = every if scan.mask is None else scan.mask
    return all_close([called.x.numpy()], [scan.x], [0.0], EXACT) and np.array_equal(mask, wanted)


def _in_output(called: Called, index: tuple[int, ...], otherwise: str) -> str:
    """The place in a recurrent layer's first output in words: half, unit, step, row."""
    sequences = called.halves[0].config["return_sequences"]
    units = called.scans[0].output.shape[-1]
    if called.scans[0].output.ndim != 3 or len(index) != 2 + sequences:
        return otherwise
    half, unit = "", index[-1]
    if len(called.scans) == 2 and called.layer.config["merge_mode"] == "concat":
        half, unit = _half(unit >= units), unit - units * (unit >= units)
    step = f", step {index[1]}" if sequences else ""
    return f"{half}unit {unit}{step}, row {index[0]}"


def _half(backward: object) -> str:
    return f"{'backward' if backward else 'forward'} half, "


# ---- every step from the reference's own state ---------------------------------------------------


def _every_step(called: Called, generation: Generation) -> tuple[int, _Finding]:
    """Run all steps as rows of one step; returns how many could be judged, and what was found."""
    x = _rows(called.scans[0].x)[:, np.newaxis]
    start = [tuple(map(_rows, scan.before)) for scan in called.scans]
    flat_start = tuple(state for states in start for state in states)
    nudged = compute_recurrent(
        called.layer, x, None, flat_start, generation, nudge=nudge_by(np.float64, 0)
    ).scans.values()
    begin = tuple(tuple(map(_tensor, states)) for states in start)
    outputs, states = called.module.run_sequence(RnnCall(_tensor(x), None, begin))
    found: list[_Finding] = []
    judged = len(x)
    for number, (scan, other) in enumerate(zip(called.scans, nudged, strict=True)):
        wanted = [_rows(scan.output), *map(_rows, scan.after)]
        moved = [other.output[:, 0], *(state[:, 0] for state in other.after)]
        pairs = zip(wanted, moved, strict=True)
        steady = np.logical_and.reduce([_steady(a[:, None], b[:, None])[:, 0] for a, b in pairs])
        judged = min(judged, int(steady.sum()))
        got = [outputs[number][:, 0].numpy(), *(state.numpy() for state in states[number])]
        found.append(_step_finding(called, number, got, wanted, steady))
    if not judged:
        return 0, _Finding(0.0, 0.0, (), False, "no step of it can be judged")
    return judged, max(found, key=lambda one: (not one.ok, one.absolute))


def _step_finding(
    called: Called, number: int, got: list[Array], wanted: list[Array], steady: Array
) -> _Finding:
    """One direction's steps; where they go wrong, in words."""
    if [a.shape for a in got] != [b.shape for b in wanted]:
        return _Finding(float("inf"), float("inf"), (), False, "a state of another shape")
    chosen = np.flatnonzero(steady)
    got, wanted = [a[chosen] for a in got], [b[chosen] for b in wanted]
    wrong = [i for i, pair in enumerate(zip(got, wanted, strict=True)) if not _exact(*pair)]
    part = wrong[0] if wrong else 0  # what it gives before what it keeps
    _, index = worst_of(got[part : part + 1], wanted[part : part + 1])
    if not index:
        return _Finding(0.0, 0.0, (), not wrong, "")
    row, step = divmod(int(chosen[index[0]]), called.scans[0].x.shape[1])
    halves = len(called.scans) == 2
    shift = 0
    if halves and number and called.layer.config["merge_mode"] == "concat":
        shift = called.scans[0].output.shape[-1]
    at = index[1:]
    unit = f"unit {at[0]}" if len(at) == 1 else f"place {list(at)}"
    state = f"state {part - 1}, " if part > 1 else ""
    where = f"{_half(number) if halves else ''}{state}{unit}, step {step}" if wrong else ""
    sequences = called.halves[0].config["return_sequences"]
    full = (row, *([step] if sequences else []), *at[:-1], at[-1] + shift)
    return _Finding(*error(got, wanted), full, not wrong, where)


def _exact(got: Array, wanted: Array) -> bool:
    return all_close([got], [wanted], [0.0], EXACT)


def _rows(array: Array) -> Array:
    """(B, T, ...) -> (B T, ...)."""
    return array.reshape(-1, *array.shape[2:])


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
