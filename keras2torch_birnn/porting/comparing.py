"""``compare``: what is wrong in a hand-made port of a Keras model, and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch
from torch import nn

from keras2torch_birnn.comparison.tolerance import max_errors
from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.porting.batches import (
    LARGE,
    WITH_GAPS,
    Batch,
    arguments,
    batch_of_empty_rows,
    batch_with_gaps,
    batches,
)
from keras2torch_birnn.porting.call_graph import path_of, place_of
from keras2torch_birnn.porting.changes import Apply, Change, Key, weighted_as
from keras2torch_birnn.porting.checked_run import first_output, same
from keras2torch_birnn.porting.function_port import has_values
from keras2torch_birnn.porting.kept_results import KeptResults
from keras2torch_birnn.porting.layer_changes import is_recurrent
from keras2torch_birnn.porting.masked_steps import explain_masked_steps
from keras2torch_birnn.porting.matching import (
    BATCH_NORMS,
    Match,
    Unit,
    find_units,
    foreign_changes,
    match_units,
    unmatched,
    weight_changes,
)
from keras2torch_birnn.porting.near_values import near_changes
from keras2torch_birnn.porting.observing import (
    DROPOUTS,
    FAILURES,
    HALVES,
    PortRun,
    keep_valid,
    observe,
)
from keras2torch_birnn.porting.report import PortFinding, PortReport, PortTensor, locate_first
from keras2torch_birnn.porting.right_tensors import Leaf, find_leaves
from keras2torch_birnn.porting.trials import Search, trials_together
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.source import ModelSource
from keras2torch_birnn.readers.steps import PathLike
from keras2torch_birnn.reference import Trace
from keras2torch_birnn.spec import Array, ModelSpec, leaves
from keras2torch_birnn.verification.given_inputs import InputData

# What computes otherwise in training.
_MODAL = (
    *BATCH_NORMS,
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
_AT_MASKED_STEPS = "at masked steps of the outputs alone"
_UNEXPLAINED = "it, or what is done to its input, differs; no known mistake explains how"
# In float64 only wrong numbers are far apart; a port that insists on float32 rounds.
_PRECISIONS = ((torch.float64, 1e-6), (torch.float32, 1e-3))


def compare(
    source: ModelSource,
    port: nn.Module,
    *,
    inputs: InputData | None = None,
    map: Mapping[str, str] | None = None,
    config: PathLike | None = None,
    masked_steps: str | None = None,
    plugins: Iterable[PluginName] = (),
) -> PortReport:
    """Compare a torch module that you wrote by hand with the Keras model that it is a port of.

    A copy of the port runs in eval mode and float64, on random inputs: full rows and, if the model
    has a mask, rows padded at the end and in front. Where its outputs differ from Keras', known
    mistakes are tried on Keras' side until one gives the port's own numbers; only those are
    reported. Layers that no known mistake explains are reported as such.

    Args:
        source: File or live model, as ``path`` for ``convert``.
        port: Takes the inputs in Keras' order, (B, T, ...), and returns the outputs in Keras'
            order; ``lengths`` or ``mask`` (B, T) are filled in if its forward asks for them.
        inputs: Your own data, as for ``verify``.
        map: Names of the port's modules -> paths of Keras layers, where the values do not tell.
        config: As for ``convert``.
        masked_steps: As for ``convert``.
        plugins: As for ``convert``.

    Returns:
        The verdict (``ok``) and what is wrong (``findings``).

    Raises:
        UsageError: The port cannot be called so, or ``map`` has unknown names.
        K2TError: As ``convert``.
    """
    load_plugins(plugins)
    if not isinstance(port, nn.Module):
        raise UsageError(
            f"the port is of type {type(port).__name__}", "give a torch.nn.Module, not a class"
        )
    for name, tensor in (*port.named_parameters(), *port.named_buffers()):
        if not has_values(tensor):
            raise UsageError(
                f"{printable(name)} of the port has no values yet (a lazy module, or on meta)",
                "call the port once, or load its weights, before you compare it",
            )
    spec = read_model(source, config=config, masked_steps=masked_steps)
    leaves_ = find_leaves(spec)
    units = find_units(port)
    matches = match_units(units, leaves_, _pairs(map or {}, units, leaves_))
    comparison = _Comparison(spec, port, leaves_, units, matches)
    return comparison.report(batches(spec, inputs), batch_with_gaps(spec, inputs))


class _Comparison:
    """A port and a model, with what their weights tell."""

    def __init__(
        self,
        spec: ModelSpec,
        port: nn.Module,
        leaves_: Sequence[Leaf],
        units: Sequence[Unit],
        matches: Sequence[Match],
    ) -> None:
        self.spec, self.port, self.units, self.matches = spec, port, units, matches
        self.together = trials_together()
        self.evidence = (*weight_changes(matches), *near_changes(_free(units, matches), leaves_))
        foreign = foreign_changes(units, matches, leaves_)
        self.guesses = (*_exchanged_layers(leaves_), *foreign)

    @property
    def stateful(self) -> bool:
        """Tell whether Keras keeps states from call to call."""
        return any(one.config.get("stateful") for one in self.spec.root.walk())

    def _is_repeated(self, batch: Batch, run: PortRun, first: PortRun | str) -> bool:
        """Tell whether a second call gives what the first one gave, as it has to."""
        if batch.calls == 1 or self.stateful or isinstance(first, str):
            return False
        return _are_close(run, first)

    def report(self, drawn: Sequence[Batch], gaps: Batch | None) -> PortReport:
        """Compare on every batch; look for the reasons where the outputs differ.

        A reason has to hold on all batches, also on those on which the port is right. gaps: of
        several reasons, one that holds there is preferred.
        """
        runs = [self._run(batch, first=number == 0) for number, batch in enumerate(drawn)]
        judged: list[tuple[str, Search]] = []
        right: list[tuple[str, Search]] = []
        errors = [0.0]
        for batch, run in zip(drawn, runs, strict=True):
            if isinstance(run, str) or self._is_repeated(batch, run, runs[0]):
                continue
            search = self._search(batch, run)
            errors.append(_error(run, search.exact.outputs, search))
            if search.same_outputs(search.exact):
                right.append((batch.name, search))
            else:
                judged.append((batch.name if batch is not drawn[0] else "", search))
        if judged and gaps is not None:
            run = self._run(gaps, first=False)
            preferred = None if isinstance(run, str) else self._search(gaps, run)
            judged = [(name, replace(one, gaps=preferred)) for name, one in judged]
        findings = self._explain(judged, [search for _, search in right])
        if WITH_GAPS in [name for name, _ in judged]:
            findings = [_also_with_gaps(one) for one in findings]
        for batch, run in zip(drawn, runs, strict=True):
            if isinstance(run, str):
                findings.append(PortFinding("the port", "fails", run, rows=batch.name))
        settled = judged[0][1] if judged and not judged[0][0] else right[0][1]
        if random := self._random(drawn[0], settled):
            findings.append(random)
        if not findings and (empty := self._on_empty_rows(batch_of_empty_rows(self.spec, drawn))):
            findings.append(empty)
        if not findings and not judged and (masked := _at_masked_steps(right)):
            findings.append(masked)
        names = tuple(
            one.name
            for one in drawn
            if one.name not in ("", LARGE) and (self.stateful or one.calls == 1)
        )
        ok = not findings and not judged
        return PortReport(
            ok,
            tuple(findings),
            tuple(self._tensors()),
            names,
            max(errors),
            (
                *self._notes(ok=ok),
                *_padding_notes(findings),
                *_unread_notes(findings),
                *_masked_step_notes([*right, *judged]),
                *(self._gap_notes(gaps) if ok and gaps and gaps.name not in names else ()),
            ),
        )

    def _gap_notes(self, gaps: Batch) -> Iterator[str]:
        """Tell which outputs differ where rows have gaps, of a port that is right otherwise."""
        run = self._run(gaps, first=False)
        if isinstance(run, str):
            return
        search = self._search(gaps, run)
        trios = zip(run.outputs, search.exact.outputs, search.output_masks(), strict=False)
        for number, trio in enumerate(trios, 1):
            if not same(*trio, run.tolerance):
                yield (
                    "on rows with gaps (id 0 between others), which texts do not have, "
                    f"output {number} differs from Keras'"
                )

    def _explain(
        self, judged: Sequence[tuple[str, Search]], right: Sequence[Search]
    ) -> list[PortFinding]:
        """Explain one run after the other that differs (with its rows); begin again if need be.

        right: the runs that do not differ, which has to remain so.
        """
        found: list[Change] = []
        findings: list[PortFinding] = []
        done: list[tuple[str, Search]] = []
        for rows, search in judged:
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
            new = list(self._findings(search, found, rows, before))
            findings += [one for one in new if not _follows(one, findings, search)]
            found = [one for one in search.found if one.kind != "unexplained"]
            if not explained and not search.unexplained:
                end = _explain_end(search.run, search, rows)
                findings += [] if _follows(end, findings, search) else [end]
            done.append((rows, search))
        return findings

    def _on_empty_rows(self, batch: Batch | None) -> PortFinding | None:
        """Say where the port gives NaN in rows of padding alone, if Keras gives none.

        Other numbers there are no finding: packing needs a length of 1 at least.
        """
        run = "" if batch is None else self._run(batch, first=False)
        if batch is None or isinstance(run, str):
            return None
        search = self._search(batch, run)
        trace = search.compute([])
        if trace is None or any(np.isnan(y).any() for y in trace.outputs):
            return None
        refs = leaves(self.spec.graph.outputs)
        ends = [
            path_of(ref)
            for ref, y, mask in zip(refs, run.outputs, search.output_masks(), strict=False)
            if np.isnan(keep_valid(y, mask)).any()
        ]
        if not ends:
            return None
        for path in trace.layers:
            right = first_output(trace, path)
            near = run.nearest(right, ())
            if near is None or search.seen(path, trace):
                continue
            if np.isnan(keep_valid(near, search.valid.get(path))).any():
                where = locate_first(right, near, search.layers[path])
                return PortFinding(path, "NaN", "gives NaN first", where, rows=batch.name)
        return PortFinding(ends[0], "NaN", "gives NaN first", rows=batch.name)

    def _random(self, batch: Batch, settled: Search) -> PortFinding | None:
        """Say where the port's outputs are random, or in half precision. ``settled``: without."""
        run = settled.run
        if not run.random:
            return None
        free = self._run(batch, first=False, settled=False)
        if isinstance(free, str) or _are_close(free, run):
            return None
        search = self._search(batch, free)
        trace = search.compute(settled.found)
        path = (trace and search.first_wrong(trace)) or "the port"
        (name, module), *_ = run.random
        where = f" in {printable(module)}" if module else ""
        words = f"random numbers ({name}{where}) enter it, also in eval mode"
        if name in HALVES.values():
            if (change := search.find_rounding(settled.found)) is not None:
                return PortFinding(change.layer, change.kind, change.words)
            path = next(settled.lost_in(search, trace), path) if trace else path
            return PortFinding(path, "extra", f"it is rounded to {name}{where}")
        if name in DROPOUTS:
            path = search.dropout_before(path) or path
            words = (
                f"dropout ({name}{where}) is active in eval mode: use nn.Dropout, or give it "
                "training=self.training"
            )
        return PortFinding(path, "random", words)

    def _search(self, batch: Batch, run: PortRun) -> Search:
        return Search(
            self.spec,
            batch.arrays,
            run,
            self.evidence,
            self.guesses,
            found=[],
            together=self.together,
            calls=batch.calls,
            kept=KeptResults(self.spec.root),
        )

    def _run(self, batch: Batch, *, first: bool, settled: bool = True) -> PortRun | str:
        given = arguments(self.port.forward, self.spec, batch.arrays)
        reason = ""
        for dtype, tolerance in _PRECISIONS:
            try:
                copy = deepcopy(self.port).cpu().to(dtype).eval()
                for _ in range(batch.calls - 1):
                    observe(copy, given, dtype, tolerance, settled=settled)
                return observe(copy, given, dtype, tolerance, settled=settled)
            except FAILURES as error:
                lines = f"{type(error).__name__}: {error}".strip().splitlines()
                reason = reason or printable(lines[0])
        if first:
            shapes = ", ".join(str(x.shape) for x in given)
            raise UsageError(
                f"the port fails on inputs of shapes {shapes}: {reason}",
                "it has to take the Keras model's inputs, in that order",
            )
        return f"it fails: {reason}"

    # ---- the report ----

    def _findings(
        self,
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
                self._finding(*_first_shown(one, search, rows, earlier)),
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

    def _finding(self, change: Change, search: Search, rows: str) -> PortFinding:
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

    def _tensors(self) -> Iterator[PortTensor]:
        for match in self.matches:
            for role, difference in match.differences.items():
                words = "" if difference is None else difference.words
                yield PortTensor(match.unit.names[role], match.leaf.name, words)
        for unit in unmatched(self.units, self.matches):
            for name in unit.names.values():
                yield PortTensor(name, "", "matched to no layer")

    def _notes(self, *, ok: bool) -> Iterator[str]:
        for one in self.evidence if ok else ():
            for tensor in one.tensors:
                yield f"no input that was tried shows a difference, but {tensor}"
        if self.port.training and any(isinstance(one, _MODAL) for one in self.port.modules()):
            yield "the port was compared in eval mode: call .eval() before you use it"


def _follows(new: PortFinding, told: Sequence[PortFinding], search: Search) -> bool:
    """Tell whether what nothing explains may follow from what was told of other rows."""
    places = {one.layer for one in told}
    later = {path for place in places for path in search.later.get(place, ())}
    return (
        bool(told) and new.kind == "unexplained" and new.layer in {*places, *later, "the outputs"}
    )


def _also_with_gaps(finding: PortFinding) -> PortFinding:
    """Say of padding that is taken to be at the end that it shows where rows have gaps, too."""
    if finding.kind != "padding side" or WITH_GAPS in finding.rows:
        return finding
    return replace(finding, rows=f"{finding.rows}, {WITH_GAPS}")


def _first_shown(
    change: Change, search: Search, rows: str, earlier: Sequence[tuple[str, Search]]
) -> tuple[Change, Search, str]:
    """Return a change that was found, and the first rows on which it makes a difference."""
    rest = [one for one in search.found if one is not change]
    for name, one in earlier:
        if not one.explained_by(rest):
            return change, replace(one, found=search.found), name
    return change, search, rows


def _padding_notes(findings: Sequence[PortFinding]) -> Iterator[str]:
    """Tell how to compare a port whose rows are never padded in front, as packing needs them."""
    if any(one.kind == "padding side" for one in findings):
        yield (
            "that padding is at the end is no mistake if your rows are always padded so; Keras' "
            "pad_sequences pads in front"
        )


def _at_masked_steps(right: Sequence[tuple[str, Search]]) -> PortFinding | None:
    """Say where a port that is right at all steps that count differs at masked ones."""
    for name, search in right:
        found = explain_masked_steps(search)
        if found is None:
            continue
        path, change = found
        words = _UNEXPLAINED
        words = f"{words if change is None else change.words} ({_AT_MASKED_STEPS})"
        kind = "unexplained" if change is None else change.kind
        return PortFinding(path, kind, words, rows=name)
    return None


def _unread_notes(findings: Sequence[PortFinding]) -> Iterator[str]:
    """Say of masked steps that they matter to those alone who read them."""
    if any(_AT_MASKED_STEPS in one.words for one in findings):
        yield "steps of the outputs that a mask leaves out are no mistake if nobody reads them"


def _masked_step_notes(runs: Sequence[tuple[str, Search]]) -> Iterator[str]:
    """Tell which outputs differ where they do not count, of runs that are explained otherwise."""
    rows: dict[int, list[str]] = {}
    for name, search in runs:
        trace = search.compute(search.found)
        if trace is None or not search.same_outputs(trace):
            continue
        for number, pair in enumerate(zip(search.run.outputs, trace.outputs, strict=False)):
            if not same(*pair, None, search.run.tolerance):
                rows.setdefault(number + 1, []).append(name)
    for number, names in rows.items():
        shown = ", ".join(dict.fromkeys(filter(None, names)))
        words = f"at masked steps, which do not count, output {number} differs from Keras'"
        yield f"{words} ({shown})" if shown else words


def _are_close(first: PortRun, second: PortRun) -> bool:
    pairs = zip(first.outputs, second.outputs, strict=True)
    return all(same(a, b, None, first.tolerance) for a, b in pairs)


def _error(run: PortRun, right: Sequence[Array], search: Search) -> float:
    """Return the largest error of the port's outputs, at steps that count."""
    if len(run.outputs) < len(right):
        return float("inf")
    found, wanted = [], []
    for there, one, mask in zip(run.outputs, right, search.output_masks(), strict=False):
        shaped = there.reshape(one.shape) if there.size == one.size else there
        found.append(keep_valid(shaped, mask))
        wanted.append(keep_valid(one, mask))
    return max_errors(found, wanted)[0]


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


def _free(units: Sequence[Unit], matches: Sequence[Match]) -> dict[str, Array]:
    """Return the port's tensors that are matched to no layer, by name."""
    return {
        unit.names[role]: values
        for unit in unmatched(units, matches)
        for role, values in unit.values.items()
    }


def _exchanged_layers(layers: Sequence[Leaf]) -> Iterator[Change]:
    """Yield exchanges of the weights of two layers that have the same shapes."""
    by_path: dict[str, list[Leaf]] = {}
    for leaf in layers:
        by_path.setdefault(leaf.path, []).append(leaf)
    for (path, one), (other_path, other) in combinations(by_path.items(), 2):
        if _forms(one) == _forms(other):
            words = f"its weights and those of {printable(other_path)} are exchanged"
            first, second = _with_weights_of(one, other), _with_weights_of(other, one)
            yield Change("layers exchanged", path, words, {**first, **second})
            for own, there, shared in ((path, other_path, first), (other_path, path, second)):
                words = f"it uses the weights of {printable(there)}"
                yield Change("layers exchanged", own, words, shared)


def _with_weights_of(own: Sequence[Leaf], other: Sequence[Leaf]) -> dict[Key, Apply]:
    """Give the directions of a layer the weights of another one's."""
    pairs = zip(own, other, strict=True)
    return {one.key: weighted_as(there.layer.weights) for one, there in pairs}


def _forms(some: Sequence[Leaf]) -> list[Any]:
    return [
        (one.key[1], {name: array.shape for name, array in one.layer.weights.items()})
        for one in some
    ]


def _pairs(
    names: Mapping[str, str], units: Sequence[Unit], layers: Sequence[Leaf]
) -> list[tuple[Unit, Leaf]]:
    """Return the units and layers that the user says belong together.

    Raises:
        UsageError: there is no such module or layer, or they do not fit.
    """
    pairs = []
    for module, path in names.items():
        own = [unit for unit in units if unit.module == module]
        there = [leaf for leaf in layers if path in (leaf.path, leaf.name)]
        if not own or not there:
            what, name = ("module", module) if not own else ("Keras layer", path)
            known = dict.fromkeys(u.module for u in units) if not own else [x.name for x in layers]
            listed = ", ".join(map(printable, known))
            raise UsageError(
                f"map: no {what} {printable(name)} with weights", f"there are {listed}"
            )
        if len(own) != len(there):
            raise UsageError(
                f"map: {printable(module)} has {len(own)} directions, {printable(path)} "
                f"has {len(there)}",
                "name one direction: LAYER/forward_layer or LAYER/backward_layer",
            )
        pairs += list(zip(own, there, strict=True))
    return pairs
