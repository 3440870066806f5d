"""``compare``: what is wrong in a hand-made port of a Keras model, and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

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
from keras2torch_birnn.porting.call_graph import path_of
from keras2torch_birnn.porting.changes import Apply, Change, Key, weighted_as
from keras2torch_birnn.porting.checked_run import first_output, same
from keras2torch_birnn.porting.explaining import AT_MASKED_STEPS, explain, find_at_masked_steps
from keras2torch_birnn.porting.function_port import has_values
from keras2torch_birnn.porting.kept_results import KeptResults
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
from keras2torch_birnn.spec import Array, ModelSpec, leaves
from keras2torch_birnn.verification.given_inputs import InputData

# What computes otherwise in training.
_MODAL = (
    *BATCH_NORMS,
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
# In float64 only wrong numbers are far apart; a port that insists on float32 rounds.
_PRECISIONS = ((torch.float64, 1e-6), (torch.float32, 1e-3))


def compare(
    source: ModelSource,
    port: nn.Module,
    *,
    inputs: InputData | None = None,
    map: Mapping[str, str] | None = None,
    config: PathLike | None = None,
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
    spec = read_model(source, config=config)
    leaves_ = find_leaves(spec)
    units = find_units(port)
    matches = match_units(units, leaves_, _pairs(map or {}, units, leaves_))
    comparison = _Comparison(spec, port, leaves_, units, matches)
    return comparison.report(batches(spec, inputs), batch_with_gaps(spec, inputs))


class _Judged(NamedTuple):
    """Runs whose outputs differ and those that are right, by their rows, and the largest error.

    The rows of the first batch, full ones, need no name where they differ.
    """

    wrong: Sequence[tuple[str, Search]]
    right: Sequence[tuple[str, Search]]
    error: float


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
        wrong, right, error = self._judge(drawn, runs)
        if wrong and gaps is not None:
            run = self._run(gaps, first=False)
            preferred = None if isinstance(run, str) else self._search(gaps, run)
            wrong = [(name, replace(one, gaps=preferred)) for name, one in wrong]
        findings = explain(wrong, [search for _, search in right])
        if WITH_GAPS in [name for name, _ in wrong]:
            findings = [_also_with_gaps(one) for one in findings]
        for batch, run in zip(drawn, runs, strict=True):
            if isinstance(run, str):
                findings.append(PortFinding("the port", "fails", run, rows=batch.name))
        settled = wrong[0][1] if wrong and not wrong[0][0] else right[0][1]
        if random := self._random(drawn[0], settled):
            findings.append(random)
        if not findings and (empty := self._on_empty_rows(batch_of_empty_rows(self.spec, drawn))):
            findings.append(empty)
        if not findings and not wrong and (masked := find_at_masked_steps(right)):
            findings.append(masked)
        names = tuple(
            one.name
            for one in drawn
            if one.name not in ("", LARGE) and (self.stateful or one.calls == 1)
        )
        ok = not findings and not wrong
        notes = (
            *self._notes(ok=ok),
            *_padding_notes(findings),
            *_unread_notes(findings),
            *_masked_step_notes([*right, *wrong]),
            *(self._gap_notes(gaps) if ok and gaps and gaps.name not in names else ()),
        )
        return PortReport(ok, tuple(findings), tuple(self._tensors()), names, error, notes)

    def _judge(self, drawn: Sequence[Batch], runs: Sequence[PortRun | str]) -> _Judged:
        """Compare the runs on these batches with Keras, but those that fail."""
        wrong: list[tuple[str, Search]] = []
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
                wrong.append((batch.name if batch is not drawn[0] else "", search))
        return _Judged(wrong, right, max(errors))

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


def _also_with_gaps(finding: PortFinding) -> PortFinding:
    """Say of padding that is taken to be at the end that it shows where rows have gaps, too."""
    if finding.kind != "padding side" or WITH_GAPS in finding.rows:
        return finding
    return replace(finding, rows=f"{finding.rows}, {WITH_GAPS}")


def _padding_notes(findings: Sequence[PortFinding]) -> Iterator[str]:
    """Tell how to compare a port whose rows are never padded in front, as packing needs them."""
    if any(one.kind == "padding side" for one in findings):
        yield (
            "that padding is at the end is no mistake if your rows are always padded so; Keras' "
            "pad_sequences pads in front"
        )


def _unread_notes(findings: Sequence[PortFinding]) -> Iterator[str]:
    """Say of masked steps that they matter to those alone who read them."""
    if any(AT_MASKED_STEPS in one.words for one in findings):
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
