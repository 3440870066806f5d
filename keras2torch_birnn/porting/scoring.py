"""Scores of changes: how well they explain what a port gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat

import numpy as np

from keras2torch_birnn.porting.candidates import Candidates
from keras2torch_birnn.porting.changes import Change
from keras2torch_birnn.porting.checked_run import AS_PADDED, CheckedRun, first_output
from keras2torch_birnn.porting.many_trials import Rest, last_reached
from keras2torch_birnn.reference import Trace
from keras2torch_birnn.spec import Array, Structure, leaves

# Trials that are computed at once: few at first, of which one may explain everything.
_AT_ONCE = (4, 8, 16, 32, 64)
# Kinds whose values a right port computes as well, before it goes on.
_COMPUTED_ANYWAY = ("half left out", "left out", "other sum")
# Score of changes that explain everything; one more if rows with gaps, too.
EVERYTHING = 1 << 20


@dataclass
class Scoring(Candidates):
    """One run of a port, and how well changes explain it.

    ``earlier``: on other inputs; what explains this run must hold there, too. ``gaps``: on rows
    with gaps; of what explains this run, that is preferred which holds there. ``right``: the calls
    whose output the port computed, with the changes found so far.
    """

    earlier: Sequence[CheckedRun] = ()
    gaps: CheckedRun | None = None
    right: set[str] = field(default_factory=set)
    _rests: dict[str, Rest | None] = field(default_factory=dict, kw_only=True)

    def _score(self, path: str, some: Sequence[Change]) -> tuple[int, Trace | None]:
        """Rate changes, and return what the reference computes with them, if it is anything.

        The score is 0 if that is no tensor of the port.
        """
        trace = self.compute([*self.found, *some])
        if trace is None or path not in trace.layers:
            return 0, None
        return self._rated(path, some, trace), trace

    def _scored(
        self, path: str, trials: Iterable[list[Change]]
    ) -> Iterator[tuple[list[Change], int, Trace]]:
        """Yield changes that fit the model, with their score, and what is computed with them.

        Where the port does not have the call's output, the calls that follow are computed of many
        trials at once: it may have the model's outputs all the same.
        """
        trials = iter(trials)
        self._rests.clear()
        for size in chain(_AT_ONCE, repeat(_AT_ONCE[-1])):
            if not (chunk := list(islice(trials, size))):
                return
            failing = self._find_failing(path, chunk)
            for number, some in enumerate(chunk):
                early = failing.get(number)
                score, trace = (0, early) if number in failing else self._score(path, some)
                if trace is not None:
                    yield some, score, trace

    def _find_failing(
        self, path: str, trials: Sequence[Sequence[Change]]
    ) -> Mapping[int, Trace | None]:
        """Return the trials that explain nothing, by number, with what they compute up to a call.

        None: they do not fit the model.
        """
        failing: dict[int, Trace | None] = {}
        unseen: dict[tuple[Rest, bool], dict[int, Trace]] = {}
        for number, some in enumerate(trials):
            if (rest := self._rest_behind(path, some)) is None:
                continue
            trace = self.compute([*self.found, *some], until=rest.last)
            if trace is None or path not in trace.layers:
                failing[number] = None
            elif not self.shown(self._shown_at(path, some, trace), trace, some):
                failing[number] = trace
                unseen.setdefault((rest, AS_PADDED in some), {})[number] = trace
        for (rest, padded), ended in unseen.items():
            equations = self.equations([*self.found, *([AS_PADDED] if padded else [])])
            numbers = list(ended)
            for number, outputs in rest.outputs(list(ended.values()), equations):
                if self.same_outputs(Trace(outputs, {}, {})):
                    del failing[numbers[number]]
        return failing

    def _rest_behind(self, path: str, some: Sequence[Change]) -> Rest | None:
        """Return the calls behind this one and all that some changes reach, if there are any.

        None also if those of many trials cannot be computed at once.
        """
        last = last_reached(self.spec.graph, path, some)
        if self.calls > 1 or last is None:
            return None
        if last not in self._rests:
            rest = Rest(self.spec, self.inputs, last)
            trace = self.compute(self.found)
            apart = trace and rest.keeps_rows_apart(trace, self.equations(self.found))
            self._rests[last] = rest if apart else None
        return self._rests[last]

    def _rated(self, path: str, some: Sequence[Change], trace: Trace) -> int:
        """Rate changes at a call: 0 if the port contradicts them or shows them nowhere.

        Else 1 and one for each later call that the port shows with them, or ``EVERYTHING``.
        """
        whole = [*self.found, *some]
        shown = self._shown_at(path, some, trace)
        explains = self.same_outputs(trace)
        if not explains and not self.shown(shown, trace, some):
            return 0
        if self._contradict(path, some, trace):
            return 0
        if explains:
            if any(np.isnan(y).all() for y in trace.outputs) and not self.seen(path, trace):
                return 0  # NaN has many reasons
            if not all(one.explained_by(whole) for one in self.earlier):
                return 0
            return EVERYTHING + (self.gaps is not None and self.gaps.explained_by(whole))
        if not tells(trace.layers[shown]):
            return 0
        if not self.later.get(path) and len(list(leaves(self.spec.graph.outputs))) == 1:
            return 0  # it is the output, which is another one
        own = first_output(trace, path)
        if len([one for one in some if one is not AS_PADDED]) > 1:
            before = {other for other in self.right if path in self.later.get(other, ())}
            if are_values_of(before, own, trace):
                return 0  # there the port has them from
        behind = self.later.get(path, frozenset())
        elsewhere = self.right - behind - {path}
        later = sum(
            self.shown(one, trace, some)
            and tells(trace.layers[one])
            and not same_values(own, trace.layers[one])
            and not are_values_of(elsewhere, first_output(trace, one), trace)
            for one in behind
        )
        if not later and any(one.kind in _COMPUTED_ANYWAY for one in some):
            return 0  # a right port computes each half, and what goes into a layer, too
        if not later and are_values_of(self.right, own, trace):
            return 0
        if any(
            one.explained_by(self.found) and not one.explained_by(whole) for one in self.earlier
        ):
            return 0  # it would have shown on other rows
        return 1 + later

    def _shown_at(self, path: str, some: Sequence[Change], trace: Trace) -> str:
        """Return the call whose output tells: a layer that was moved to before this one, or it."""
        behind = self.later.get(path, frozenset())
        moved = [one.layer for one in some if one.kind == "order" and one.layer in behind]
        for other in moved:
            own = next(iter(leaves(trace.layers.get(other))), None)
            if own is not None and not are_values_of(self.right, own, trace):
                return other
        return path

    def _contradict(self, path: str, some: Sequence[Change], trace: Trace) -> bool:
        """Tell whether the port computed elsewhere what these changes do not give.

        That is before this call, or in another call of a layer that is called several times.
        """
        if all(change.kind == "rows" for change in some):
            return False
        behind = self.later.get(path, frozenset())
        return any(
            not is_mask(trace.layers[other]) and not self.computed(other, trace)
            for other in self.right - behind - {path}
        )


def are_values_of(calls: Iterable[str], values: Array, trace: Trace) -> bool:
    """Tell whether these are the values of one of some calls, maybe in another shape."""
    flat = np.ravel(values)
    return any(
        np.size(array) == flat.size and np.allclose(np.ravel(np.asarray(array, np.float64)), flat)
        for path in calls
        for array in leaves(trace.layers[path])
    )


def same_values(values: Array, output: Structure) -> bool:
    """Tell whether a layer hands on what it is given, maybe in another shape."""
    return np.array_equal(np.ravel(values), np.ravel(next(iter(leaves(output)))))


def tells(output: Structure) -> bool:
    """Tell whether values are of any kind that a port does not compute for other reasons, too.

    Zeros and masks are of no such kind.
    """
    values = next(iter(leaves(output)), None)
    return isinstance(values, np.ndarray) and len(np.unique(values)) >= min(3, max(2, values.size))


def is_mask(output: Structure) -> bool:
    """Tell whether all values of an output are booleans."""
    return all(isinstance(one, np.ndarray) and one.dtype == bool for one in leaves(output))
