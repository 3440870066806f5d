"""Explain the runs of a port that differ from Keras: findings, in the order of the layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np

from keras2torch_birnn.errors import printable
from keras2torch_birnn.porting.call_graph import place_of
from keras2torch_birnn.porting.changes import Change
from keras2torch_birnn.porting.checked_run import first_output, same
from keras2torch_birnn.porting.layer_changes import is_recurrent
from keras2torch_birnn.porting.masked_steps import explain_masked_steps
from keras2torch_birnn.porting.observing import PortRun
from keras2torch_birnn.porting.report import PortFinding, locate_first
from keras2torch_birnn.porting.trials import Search
from keras2torch_birnn.reference import Trace
from keras2torch_birnn.spec import Array

AT_MASKED_STEPS = "at masked steps of the outputs alone"
_UNEXPLAINED = "it, or what is done to its input, differs; no known mistake explains how"


def explain(wrong: Sequence[tuple[str, Search]], right: Sequence[Search]) -> list[PortFinding]:
    """Explain one run after the other that differs (with its rows); begin again if need be.

    right: the runs that do not differ, which has to remain so.
    """
    found: list[Change] = []
    findings: list[PortFinding] = []
    done: list[tuple[str, Search]] = []
    for rows, search in wrong:
        before: list[tuple[str, Search]] = []
        search.found = list(found)
        search.earlier = (*right, *(one for _, one in done))
        if any(one.kind == "unexplained" for one in findings):
            break
        if returned := _find_returned(search, search.exact, rows):
            findings += [] if findings else [returned]
            continue
        if found and search.explained_by(found):
            done.append((rows, search))
            continue
        explained = search.explain()
        if found and (not explained or search.found != found):
            # what the first rows told may be too special
            other = replace(search, found=[], unexplained=[], right=set(), steps=[])
            if other.explain() and all(one.explained_by(other.found) for _, one in done):
                search, explained, found, findings = other, True, [], []
                before = done
        new = list(list_findings(search, found, rows, before))
        findings += [one for one in new if not _follows(one, findings, search)]
        found = [one for one in search.found if one.kind != "unexplained"]
        if not explained and not search.unexplained:
            end = _explain_end(search.run, search, rows)
            findings += [] if _follows(end, findings, search) else [end]
        done.append((rows, search))
    return findings


def list_findings(
    search: Search,
    before: Sequence[Change],
    rows: str,
    earlier: Sequence[tuple[str, Search]],
) -> Iterator[PortFinding]:
    """Yield what a search has found, in the order of the layers.

    before: what was known; earlier: rows on which some of what is new may show already.
    """
    order = list(search.layers)
    new = [one for one in search.found if one not in before and one.words]
    # What shows only together with another mistake is right without that.
    runs = (search, *search.earlier, *(one for _, one in earlier))
    harmful = [one for one in new if not all(run.changes_nothing(one) for run in runs)]
    new = harmful if harmful or any(one.words for one in before) else new
    rated = [
        (
            order.index(one.layer) if one.layer in order else len(order),
            _finding(*_first_shown(one, search, rows, earlier)),
        )
        for one in new
    ]
    named = {change.layer for change in search.found if change.words}
    told = set[str]()
    for one in search.unexplained:
        # What is named shows in other ways, too, and a layer that is called again in each call.
        if one.path in named or place_of(one.path) in told:
            continue
        if any(one.path in search.later.get(other.path, ()) for other in search.unexplained):
            continue  # it may follow from that
        told.add(place_of(one.path))
        where = (
            ""
            if one.nearest is None
            else locate_first(one.right, one.nearest, search.layers[one.path])
        )
        words = _UNEXPLAINED
        if any(np.isnan(y).any() for y in search.run.outputs):
            words = "gives NaN, and no known mistake explains why"
        if one.nearest is None:
            behind = [path for path, given in search.sources.items() if one.path in given]
            names = ", or ".join(map(printable, behind)) or "the outputs"
            words = f"no tensor of the port has its values: it, or {names}, differs"
            words += "; no known mistake explains how"
        if one.activation:
            words = "another activation is in its place, none of those that are known"
        rated.append(
            (
                order.index(one.path),
                PortFinding(one.path, "unexplained", words, where, (), rows),
            )
        )
    yield from (finding for _, finding in sorted(rated, key=lambda pair: pair[0]))


def _finding(change: Change, search: Search, rows: str) -> PortFinding:
    rest = [one for one in search.found if one is not change]
    right, wrong = search.compute(rest), search.compute(search.found)
    where = ""
    layer = search.layers.get(change.layer)
    if right is not None and wrong is not None and layer is not None:
        here, there = (first_output(one, change.layer) for one in (right, wrong))
        where = locate_first(here, there, layer)
    path = change.layer
    if change.kind == "padding side":  # the layers that read the mask tell it from lengths
        users = search.later.get(path, frozenset()) | {path}
        path = next(
            (p for p, one in search.layers.items() if p in users and is_recurrent(one)), path
        )
    return PortFinding(path, change.kind, change.words, where, change.tensors, rows)


def _first_shown(
    change: Change, search: Search, rows: str, earlier: Sequence[tuple[str, Search]]
) -> tuple[Change, Search, str]:
    """Return a change that was found, and the first rows on which it makes a difference."""
    rest = [one for one in search.found if one is not change]
    for name, one in earlier:
        if not one.explained_by(rest):
            return change, replace(one, found=search.found), name
    return change, search, rows


def _follows(new: PortFinding, told: Sequence[PortFinding], search: Search) -> bool:
    """Tell whether what nothing explains may follow from what was told of other rows."""
    places = {one.layer for one in told}
    later = {path for place in places for path in search.later.get(place, ())}
    return (
        bool(told) and new.kind == "unexplained" and new.layer in {*places, *later, "the outputs"}
    )


def _explain_end(run: PortRun, search: Search, rows: str) -> PortFinding:
    """Report outputs that differ though the port computes the right output of every layer."""
    trace = search.compute(search.found)
    right = [] if trace is None else [np.asarray(y, np.float64) for y in trace.outputs]
    if trace is not None and (found := _find_returned(search, trace, rows)):
        return found
    words = "every layer is right, but what is returned is not the model's output"
    have = [y.shape for y in run.outputs]
    if [y.shape for y in right] != have:
        words += f" (shapes {_shapes(have)}, Keras has {_shapes([y.shape for y in right])})"
    return PortFinding("the outputs", "unexplained", words, rows=rows)


def _find_returned(search: Search, trace: Trace, rows: str) -> PortFinding | None:
    """Say what the port returns in place of the outputs, if it is anything that is known."""
    have, tolerance = search.run.outputs, search.run.tolerance
    for order in search.row_orders:
        sorted_ = replace(trace, outputs=tuple(y[order] for y in trace.outputs))
        if search.same_outputs(sorted_):
            path = next((p for p, one in search.layers.items() if is_recurrent(one)), "the outputs")
            words = "its rows are sorted by their lengths, and not put back"
            return PortFinding(path, "rows", words, rows=rows)
    for words, outputs in _other_outputs(trace):
        if len(outputs) <= len(have) and all(
            there.shape == np.shape(one) and same(there, one, None, tolerance)
            for there, one in zip(have, outputs, strict=False)
        ):
            return PortFinding("the outputs", "outputs", words, rows=rows)
    return None


def _other_outputs(trace: Trace) -> Iterator[tuple[str, Sequence[Array]]]:
    """Yield what may be returned instead of the outputs, with words."""
    right = [np.asarray(y, np.float64) for y in trace.outputs]
    for order in permutations(range(len(right))) if 1 < len(right) < 5 else ():
        shown = ", ".join(str(place + 1) for place in order)
        yield f"the outputs come in the order {shown}", [right[place] for place in order]
    for axis, what in ((-1, "the largest one's number (argmax)"), (1, "the argmax over axis 1")):
        yield f"{what} is returned", [y.argmax(axis=axis) if y.ndim > 1 else y for y in right]
    for one in range(1, max((y.ndim for y in right), default=1)):
        for other in range(one):
            words = f"axes {other} and {one} of the output are exchanged"
            yield words, [np.swapaxes(y, one, other) if one < y.ndim else y for y in right]
    for number, name in ((0, "first"), (-1, "last")):
        words = f"the {name} step alone is returned"
        yield words, [y[:, number] if y.ndim > 2 else y for y in right]
    for path in trace.layers if len(right) == 1 else ():
        words = f"the output of {printable(path)} is returned"
        yield words, [first_output(trace, path)]


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes)) or "none"


def find_at_masked_steps(right: Sequence[tuple[str, Search]]) -> PortFinding | None:
    """Say where a port that is right at all steps that count differs at masked ones."""
    for name, search in right:
        found = explain_masked_steps(search)
        if found is None:
            continue
        path, change = found
        words = _UNEXPLAINED
        words = f"{words if change is None else change.words} ({AT_MASKED_STEPS})"
        kind = "unexplained" if change is None else change.kind
        return PortFinding(path, kind, words, rows=name)
    return None
