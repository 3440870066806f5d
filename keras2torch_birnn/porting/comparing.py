"""``compare``: what is wrong in a hand-made port of a Keras model, and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from keras2torch_birnn.comparison.tolerance import max_errors
from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.porting.batches import LARGE, Batch, arguments, batches
from keras2torch_birnn.porting.checked_run import CheckedRun, same
from keras2torch_birnn.porting.divergence import OF_MASKS, OUTPUTS, Walk, Walked, differ
from keras2torch_birnn.porting.layer_call import Key
from keras2torch_birnn.porting.matching import (
    BATCH_NORMS,
    Match,
    Unit,
    WrongWeights,
    find_units,
    match_units,
    unmatched,
    with_weights,
    wrong_weights,
)
from keras2torch_birnn.porting.observing import (
    DROPOUTS,
    FAILURES,
    HALVES,
    PRECISIONS,
    PortRun,
    keep_valid,
    observe,
)
from keras2torch_birnn.porting.report import PortFinding, PortReport, PortTensor, locate_first
from keras2torch_birnn.porting.right_tensors import Leaf, find_leaves
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.containers.container import ModelSource
from keras2torch_birnn.readers.steps import PathLike
from keras2torch_birnn.spec import ModelSpec, leaves
from keras2torch_birnn.verification.given_inputs import InputData

# What computes otherwise in training.
_MODAL = (
    *BATCH_NORMS,
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)


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
    has a mask, rows padded at the end and in front. Its weights are compared with the file's, then
    the layers are walked through in order, up to the first that the port does not compute. The
    usual mistakes are tried on that layer alone; one that gives the port's own numbers, there and
    behind it, is named, and the walk goes on. What is not explained ends it.

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
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise UsageError(
                f"{printable(name)} of the port has no values yet (a lazy module, or on meta)",
                "call the port once, or load its weights, before you compare it",
            )
    spec = read_model(source, config=config)
    leaves_ = find_leaves(spec)
    units = find_units(port)
    matches = match_units(units, leaves_, _pairs(map or {}, units, leaves_))
    return _Comparison(spec, port, units, matches).report(batches(spec, inputs))


class _Comparison:
    """A port and a model, with what their weights tell."""

    def __init__(
        self, spec: ModelSpec, port: nn.Module, units: Sequence[Unit], matches: Sequence[Match]
    ) -> None:
        self.spec, self.port, self.units, self.matches = spec, port, units, matches
        self.stateful = any(one.config.get("stateful") for one in spec.root.walk())

    def report(self, drawn: Sequence[Batch]) -> PortReport:
        """Compare on every batch; look for the reasons where the outputs differ."""
        findings: list[PortFinding] = []
        runs: list[CheckedRun] = []
        for number, batch in enumerate(drawn):
            run = self._run(batch, first=number == 0)
            if isinstance(run, str):
                findings.append(PortFinding("the port", "fails", run, rows=batch.name))
                continue
            checked = CheckedRun(self.spec, batch, run)
            if batch.calls > 1 and not self.stateful:
                findings += [] if _are_close(run, runs[0].run) else [_kept_state(checked, runs[0])]
            else:
                runs.append(checked)
        weights = wrong_weights(self.matches)
        if not all(run.is_right() for run in runs):
            findings = [*_Findings(self.spec, runs, weights).all(), *findings]
            weights = []
        if random := self._random(drawn[0], runs):
            findings.append(random)
        names = tuple(
            one.name
            for one in drawn
            if one.name not in ("", LARGE) and (self.stateful or one.calls == 1)
        )
        error = max((_error(run) for run in runs), default=0.0)
        notes = (*self._notes(weights if not findings else []), *_masked_step_notes(runs, findings))
        ok = not findings and all(run.is_right() for run in runs)
        return PortReport(ok, tuple(findings), tuple(self._tensors()), names, error, notes)

    def _random(self, batch: Batch, runs: Sequence[CheckedRun]) -> PortFinding | None:
        """Say where the port's outputs are random, or in half precision."""
        settled = runs[0] if runs else None
        if settled is None or not settled.run.drawn:
            return None
        free = self._run(batch, first=False, settled=False)
        if isinstance(free, str) or _are_close(free, settled.run):
            return None
        drawn, walk = settled.run.drawn[0], Walk(self.spec, [settled])
        given = walk.seen_in(replace(settled.run, seen=drawn.given))
        path = walk.outer(given[-1])[0] if given else walk.first_lost_in(free)
        if drawn.name in HALVES.values():
            return PortFinding(path, "half precision", f"it is rounded to {drawn.name}")
        words = f"random numbers ({drawn.name}) enter it, also in eval mode"
        if drawn.name in DROPOUTS:
            words = (
                f"dropout ({drawn.name}) is active in eval mode: use nn.Dropout, or give it "
                "training=self.training"
            )
        return PortFinding(path, "random", words)

    def _run(self, batch: Batch, *, first: bool, settled: bool = True) -> PortRun | str:
        given = arguments(self.port.forward, self.spec, batch.arrays)
        reason = ""
        for dtype, tolerance in PRECISIONS:
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

    def _notes(self, weights: Sequence[WrongWeights]) -> Iterator[str]:
        for one in weights:
            for tensor in one.tensors:
                yield f"no input that was tried shows a difference, but {tensor}"
        if self.port.training and any(isinstance(one, _MODAL) for one in self.port.modules()):
            yield "the port was compared in eval mode: call .eval() before you use it"


class _Findings:
    """Findings on a port: its weights, then its wiring."""

    def __init__(
        self, spec: ModelSpec, runs: Sequence[CheckedRun], weights: Sequence[WrongWeights]
    ) -> None:
        self.spec, self.runs = spec, runs
        self.weights, (self.walk, self.walked) = list(weights), self._explain(weights)
        for one in weights:
            # Tensors may have been taken for those of a layer that they do not belong to.
            left = self.walked.left
            if left is not None and self.walk.outer(left)[0] == one.path:
                fewer = [other for other in self.weights if other is not one]
                walk, walked = self._explain(fewer)
                if walked.left is None or self._place(walked.left) > self._place(left):
                    self.weights, self.walk, self.walked = fewer, walk, walked

    def _explain(self, weights: Sequence[WrongWeights]) -> tuple[Walk, Walked]:
        """Walk beside a reference that computes with the port's own weights."""
        walk = Walk(with_weights(self.spec, weights), self.runs)
        return walk, walk.explain()

    def _place(self, key: Key) -> int:
        return self.walk.nodes.index(key) if key in self.walk.nodes else -1

    def all(self) -> list[PortFinding]:
        """Return the findings in the order of the layers."""
        wiring = list(self._of_wiring())
        if self.walked.left is not None:
            wiring.append(self._left(self.walked.left))
        of_weights = [self._of_weights(one) for one in self.weights]
        some = [finding for finding, matters in of_weights if matters]
        if not some and not wiring:  # they show together alone
            some = [finding for finding, _ in of_weights]
        places = {path: number for number, (path, _) in enumerate(self.walk.exact.results)}
        once: dict[tuple[str, str, str], PortFinding] = {}
        for one in (*some, *wiring):
            once.setdefault((one.layer, one.kind, one.words), one)  # of both halves, too
        return sorted(once.values(), key=lambda one: places.get(one.layer, len(places)))

    def _of_weights(self, weights: WrongWeights) -> tuple[PortFinding, bool]:
        """Tell what is wrong with a layer's weights, and whether it changes the outputs."""
        key = next((one for one in self.walk.nodes if one[0] == weights.path), self.walk.nodes[0])
        where, matters = "", False
        for run in self.runs:
            wrong, right = run.record(with_weights(self.spec, [weights]), {}), run.exact
            pairs = zip(wrong.trace.outputs, right.trace.outputs, strict=True)
            matters = matters or not all(same(*pair, None, run.run.tolerance) for pair in pairs)
            where = where or self._differs(key, right.results[key][0], wrong.results[key][0])
        told = weights.path, weights.kind, weights.words, where, weights.tensors
        return PortFinding(*told), matters

    def _of_wiring(self) -> Iterator[PortFinding]:
        told = [(self.walk.outer(one.key), one.rewrite.words) for one in self.walked.found]
        of_masks = False
        for one, name in zip(self.walked.found, told, strict=True):
            kind, words = one.rewrite.kind, one.rewrite.words
            of_masks = of_masks or kind in OF_MASKS
            if kind == "masked steps" and of_masks:
                continue  # it follows from those
            half = self._half(one.key)
            if half and told.count(name) == 1:
                words = f"{half} half: {words}"
            where, rows = "", []
            for run, usual, result in zip(self.runs, one.usual, one.results, strict=True):
                apart = self._differs(one.key, usual[0], result[0])
                where = where or apart
                masks = [one for one in leaves(usual[1]) if one is not None]
                is_padded = any(not np.all(one) for one in masks)
                if apart or (is_padded and differ(usual, result)):
                    rows.append(run.batch.name)
            shown = "" if self.runs[0].batch.name in rows else ", ".join(dict.fromkeys(rows))
            yield PortFinding(name[0][0], kind, words, where, rows=shown)

    def _half(self, key: Key) -> str:
        """Return the direction of a half's call, "" for other calls."""
        is_half = self.walk.outer(key) != key
        return key[0].rpartition("/")[2].removesuffix("_layer") if is_half else ""

    def _differs(self, key: Key, usual: Any, result: Any) -> str:
        right, actual = (np.asarray(next(leaves(x)), np.float64) for x in (usual, result))
        return locate_first(right, actual, self.walk.exact.calls[key].layer)

    def _returned(self) -> PortFinding:
        """Tell that what the port returns is not what it computed for the model's last layers."""
        run = next(one for one in self.runs if not one.is_right())
        right = run.exact.trace.outputs
        words = "what is returned is not the model's output"
        if len(run.run.outputs) < len(right):
            words += f" ({len(run.run.outputs)} tensors, Keras has {len(right)})"
            return PortFinding(OUTPUTS[0], "outputs", words)
        trios = zip(run.output_paths(), run.run.outputs, right, strict=False)
        pair = next((one for one in trios if one[1].shape != one[2].shape), None)
        if pair is None:
            return PortFinding(next(run.output_paths()), "unexplained", f"{words}: it differs")
        words += f" (shapes {pair[1].shape}, Keras has {pair[2].shape})"
        return PortFinding(pair[0], "outputs", words)

    def _left(self, key: Key) -> PortFinding:
        """Tell the call at which the port differs for an unknown reason."""
        if key == OUTPUTS:
            return self._returned()
        path, half = self.walk.outer(key)[0], self._half(key)
        read = self.walk.sources[self.walk.outer(key)]
        before = [printable(one[0]) for one in read if not self.walk.makes_mask(one)]
        inputs = f"right up to {', '.join(before)}; " if before else ""
        guess = self.walked.guess
        how = ", no usual mistake explains how" if guess is None else f"; perhaps {guess.words}"
        words = f"{inputs}it differs here{how}{f' ({half} half)' if half else ''}"
        traced = self.walk.record(self.walked.forced)
        for number, (run, one) in enumerate(zip(self.runs, traced, strict=True)):
            if key in one.results and not run.has(key, one.results[key][0]):
                right = np.asarray(next(leaves(one.results[key][0])), np.float64)
                near = run.run.nearest(right)
                layer = self.walk.exact.calls[self.walk.outer(key)].layer
                where = "" if near is None else locate_first(right, near, layer)
                return PortFinding(
                    path, "unexplained", words, where, rows=run.batch.name if number else ""
                )
        return PortFinding(path, "unexplained", words)


def _kept_state(again: CheckedRun, first: CheckedRun) -> PortFinding:
    """Say which layer computes something else in a second call with the same inputs."""
    words = "its states are kept from call to call, Keras starts each call with zeros"
    path = Walk(first.spec, [first]).first_lost_in(again.run)
    return PortFinding(path, "kept state", words, rows="a second call")


def _masked_step_notes(
    runs: Sequence[CheckedRun], findings: Sequence[PortFinding]
) -> Iterator[str]:
    """Tell which outputs of a right port differ where they do not count."""
    rows: dict[int, list[str]] = {}
    for run in runs if not findings else ():
        right = run.exact.trace.outputs
        for number, pair in enumerate(zip(run.run.outputs, right, strict=False)):
            if not same(*pair, None, run.run.tolerance):
                rows.setdefault(number + 1, []).append(run.batch.name)
    for number, names in rows.items():
        shown = ", ".join(dict.fromkeys(filter(None, names)))
        words = f"at masked steps, which do not count, output {number} differs from Keras'"
        yield f"{words} ({shown})" if shown else words
    if any(one.kind == "padding side" for one in findings):
        yield (
            "that padding is at the end is no mistake if your rows are always padded so; Keras' "
            "pad_sequences pads in front"
        )


def _are_close(first: PortRun, second: PortRun) -> bool:
    pairs = zip(first.outputs, second.outputs, strict=True)
    return all(same(a, b, None, first.tolerance) for a, b in pairs)


def _error(run: CheckedRun) -> float:
    """Return the largest error of the port's outputs, at steps that count."""
    right = run.exact.trace.outputs
    if len(run.run.outputs) < len(right):
        return float("inf")
    found, wanted = [], []
    for there, one, mask in zip(run.run.outputs, right, run.output_masks(), strict=False):
        shaped = there.reshape(one.shape) if there.size == one.size else there
        found.append(keep_valid(shaped, mask))
        wanted.append(keep_valid(one, mask))
    return max_errors(found, wanted)[0]


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
