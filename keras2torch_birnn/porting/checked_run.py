"""One run of a port, checked against what Keras computes with some changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import blake2b

import numpy as np

from keras2torch_birnn.porting.call_graph import direct_sources, later_uses, path_of
from keras2torch_birnn.porting.changes import Change, Maker, followed_by, with_changes
from keras2torch_birnn.porting.general_changes import longest_first, rounding_changes
from keras2torch_birnn.porting.kept_results import KeptResults, compute_anew
from keras2torch_birnn.porting.many_trials import FAILURES, compute_until
from keras2torch_birnn.porting.observing import PortRun, keep_valid, with_marked_nan
from keras2torch_birnn.porting.one_call import in_one_call
from keras2torch_birnn.reference import EQUATIONS, Trace, compute
from keras2torch_birnn.reference.context import Equation
from keras2torch_birnn.spec import Array, LayerSpec, ModelSpec, Structure, leaves
from keras2torch_birnn.verification.layer_check import calls_of


@dataclass
class CheckedRun:
    """One run of a port, and the reference on the same inputs.

    ``inputs``: of the run; ``calls``: how often the port was called with them, the last of which
    counts; ``kept``: results of its layers, which are computed once.
    """

    spec: ModelSpec
    inputs: Sequence[Array]
    run: PortRun
    calls: int = field(default=1, kw_only=True)
    kept: KeptResults = field(kw_only=True)

    @cached_property
    def layers(self) -> Mapping[str, LayerSpec]:
        """Every call's layer, by path."""
        return dict(calls_of(self.spec.root, ""))

    @cached_property
    def valid(self) -> Mapping[str, Array | None]:
        """The steps (B, T) that count in every call: by Keras' own masks, not by changed ones."""
        return {path: _first_mask(mask) for path, mask in self.exact.masks.items()}

    @cached_property
    def exact(self) -> Trace:
        """Keras' own results."""
        with np.errstate(all="ignore"):
            return self._compute(in_one_call(EQUATIONS))

    def padding(self, changes: Sequence[Change]) -> list[Change]:
        """Return the values that the port has at steps that do not count, with these changes."""
        key = tuple(changes)
        if key not in self._paddings:
            self._paddings[key] = self._find_padding(self.compute(changes) if key else self.exact)
        return self._paddings[key]

    @cached_property
    def _paddings(self) -> dict[tuple[Change, ...], list[Change]]:
        return {}

    def _find_padding(self, trace: Trace | None) -> list[Change]:
        found: list[Change] = []
        for path, output in trace.layers.items() if trace else ():
            valid, own = self.valid.get(path), next(leaves(output))
            if valid is None or valid.all() or path not in self.layers:
                continue
            there = self.run.latest(np.asarray(own, np.float64), valid)
            if there is not None:
                apply = followed_by(partial(_padded_as, there, valid))
                found.append(Maker(path, self.layers[path]).change("padding", "", apply))
        return found

    @cached_property
    def later(self) -> Mapping[str, frozenset[str]]:
        """Every call's later calls that use its output."""
        return later_uses(self.spec.graph, "")

    @cached_property
    def sources(self) -> Mapping[str, Sequence[str]]:
        """The calls whose outputs each call takes, the last one first."""
        return direct_sources(self.spec.graph, "")

    def compute(
        self, changes: Sequence[Change], *, note: bool = False, until: str | None = None
    ) -> Trace | None:
        """Run the reference with these changes; None if they do not fit the model.

        note: remember the layers' results, which later runs take over where nothing differs, and
        look for them first. until: the call of the model's graph at which the run may end.
        """
        changes = self._with_padding(changes)
        equations = in_one_call(self.kept.equations(note=note))
        equations = with_changes(changes, equations, self.kept.compute_changed)
        try:
            with np.errstate(all="ignore"):
                if until is not None and self.calls == 1:
                    return compute_until(until, self.spec, self.inputs, equations)
                return self._compute(equations)
        except FAILURES:
            return None

    def equations(self, changes: Sequence[Change]) -> Mapping[str, Equation]:
        """Return the reference's equations with these changes, of which no result is kept."""
        return with_changes(self._with_padding(changes), in_one_call(self.kept.anew), compute_anew)

    def _with_padding(self, changes: Sequence[Change]) -> Sequence[Change]:
        """Put the port's own values at padded steps in the place of what stands for them."""
        if AS_PADDED not in changes:
            return changes
        place = changes.index(AS_PADDED)
        before = changes[:place]
        after = [one for one in changes[place:] if one is not AS_PADDED]
        return [*before, *self.padding(before), *after]

    def _compute(self, equations: Mapping[str, Equation]) -> Trace:
        states: dict[str, tuple[Array, ...]] | None = {} if self.calls > 1 else None
        for _ in range(self.calls - 1):
            compute(self.spec, self.inputs, states=states, equations=equations)
        return compute(self.spec, self.inputs, states=states, equations=equations)

    def same_outputs(self, trace: Trace, *, everywhere: bool = False) -> bool:
        """Tell whether the port's outputs are the reference's, at steps that count or at all."""
        if len(self.run.outputs) < len(trace.outputs):
            return False
        masks: list[Array | None] = [None] * len(trace.outputs)
        if not everywhere:
            masks = self.output_masks()
        return all(
            same(there, right, mask, self.run.tolerance)
            for there, right, mask in zip(self.run.outputs, trace.outputs, masks, strict=False)
        )

    def changes_nothing(self, change: Change) -> bool:
        """Tell whether the reference's outputs stay what they are, at steps that count."""
        trace = self.compute([change])
        return trace is not None and all(
            same(y, right, mask, self.run.tolerance)
            for y, right, mask in zip(
                trace.outputs, self.exact.outputs, self.output_masks(), strict=True
            )
        )

    def output_masks(self) -> list[Array | None]:
        """Return for each of the model's outputs the steps (B, T) that count; None: all."""
        found: list[Array | None] = []
        for ref in leaves(self.spec.graph.outputs):
            path = path_of(ref)
            found.append(self.valid.get(path))
        return found

    def seen(self, path: str, trace: Trace) -> bool:
        """Tell whether the port computed the output of a call."""
        values = first_output(trace, path)
        valid = self.valid.get(path)
        return self.run.has(values, valid) or any(
            self.run.has(values[order], None if valid is None else valid[order])
            for order in self.row_orders
            if len(values) == len(order)
        )

    @cached_property
    def row_orders(self) -> list[Array]:
        """Orders of the rows by their lengths, in which the port sorted them for packing."""
        lengths = [mask.sum(axis=1) for mask in self.valid.values() if mask is not None]
        found: dict[tuple[int, ...], Array] = {}
        for order in (place(one) for one in lengths for place in (longest_first, np.argsort)):
            if any(np.any(x[order] != x) and self.run.has(x[order]) for x in self.inputs):
                found[tuple(order)] = order
        return list(found.values())

    def computed(self, path: str, trace: Trace) -> bool:
        """Tell whether the port computed the output of a call, maybe by single steps or rows.

        A loop may never put them together, and two calls may be one of more rows or steps. Of a
        change that is only tried this tells too little: in another order they are the same ones.
        """
        values = first_output(trace, path)
        key = path, values.shape, blake2b(values.tobytes()).digest()
        if key not in self._computed:
            self._computed[key] = self.seen(path, trace) or self._has_pieces(path, values)
        return self._computed[key]

    @cached_property
    def _computed(self) -> dict[tuple[str, tuple[int, ...], bytes], bool]:
        """Outputs of calls, and whether the port computed them."""
        return {}

    def _has_pieces(self, path: str, values: Array) -> bool:
        """Tell whether a longer tensor has these values, or single ones have its steps or rows."""
        valid = self.valid.get(path)
        if self.run.contains(values, valid):
            return True
        if values.ndim < 2:
            return False
        return self._has_steps(path, values) or all(
            self.run.has(row[steps]) or self.run.has(row[np.newaxis], steps[np.newaxis])
            for row, steps in zip(values, self._counts(path, values), strict=True)
            if steps.any()
        )

    def _has_steps(self, path: str, values: Array) -> bool:
        """Tell whether the port computed each step of a call's values (B, T, F) that counts."""
        counts = self._counts(path, values)
        return values.ndim == 3 and all(
            self.run.has(values[:, t : t + 1], counts[:, t : t + 1])
            for t in np.flatnonzero(counts.any(axis=0))
        )

    def _counts(self, path: str, values: Array) -> Array:
        """Return what counts of the first two axes of a call's values."""
        valid = self.valid.get(path)
        fits = valid is not None and valid.shape == values.shape[:2]
        return valid if valid is not None and fits else np.ones(values.shape[:2], bool)

    def shown(self, path: str, trace: Trace, changes: Sequence[Change]) -> bool:
        """Tell whether the port computed what changes give at a call, maybe by single steps.

        Those in another order are the same ones.
        """
        if self.seen(path, trace):
            return True
        moved = any(one.kind in _OF_PLACES for one in changes)
        values = first_output(trace, path)
        return not moved and self._has_steps(path, values)

    def find_rounding(self, explained: Sequence[Change]) -> Change | None:
        """Return the rounding of one output that explains the port's, with what is explained."""
        makers = (Maker(path, layer) for path, layer in self.layers.items())
        changes = (change for maker in makers for change in rounding_changes(maker))
        return next((one for one in changes if self.explained_by([*explained, one])), None)

    def lost_in(self, other: CheckedRun, trace: Trace) -> Iterator[str]:
        """Yield the calls whose output this run of the port computed, and the other run did not."""
        for path in trace.layers:
            if self.computed(path, trace) and not other.computed(path, trace):
                yield path

    def dropout_before(self, path: str) -> str | None:
        """Return the dropout whose output a call takes, if it does."""
        for other in self.sources.get(path, ()):
            if "Dropout" in self.layers[other].class_name:
                return other
        return None

    def explained_by(self, changes: Sequence[Change]) -> bool:
        """Tell whether the port's outputs are the reference's with these changes."""
        trace = self.compute(changes)
        return trace is not None and self.same_outputs(trace)


def first_output(trace: Trace, path: str) -> Array:
    """Return the first output of a call, in float64."""
    return np.asarray(next(leaves(trace.layers[path])), np.float64)


# Kinds of changes that may give the same steps in other places.
_OF_PLACES = ("batch_first", "direction", "flipped", "order", "rows", "steps")
# Stands for the port's own values at steps that do not count, in whatever run: of what the changes
# before it give.
AS_PADDED = Change("padding", "", "", {})


def _padded_as(there: Array, valid: Array, own: Array) -> Array:
    """Take other values where nothing counts, if these are the same where something does."""
    copies = len(own) // len(there)  # rows of several trials
    there, valid = np.concatenate([there] * copies), np.concatenate([valid] * copies)
    if own.shape != there.shape or not np.allclose(own[valid], there[valid]):
        return own
    return there


def same(there: Array, right: Array, mask: Array | None, tolerance: float) -> bool:
    """Compare an output with the right one, without axes of size 1, where the mask counts."""
    there, right = with_marked_nan(there), with_marked_nan(right)
    if [n for n in there.shape if n > 1] != [n for n in right.shape if n > 1]:
        return False
    there = there.reshape(right.shape)
    there, right = keep_valid(there, mask), keep_valid(right, mask)
    limit = tolerance * (1 + float(np.abs(right).max(initial=0.0)))
    return bool(np.isfinite(limit)) and bool(np.abs(there - right).max(initial=0.0) <= limit)


def _first_mask(mask: Structure) -> Array | None:
    found = next(iter(leaves(mask)), None)
    return found.astype(bool) if isinstance(found, np.ndarray) and found.ndim == 2 else None
