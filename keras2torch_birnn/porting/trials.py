"""Find the changes of Keras' computation that make it give what a port gives, by trying.

The layers are looked at in the model's order. The first one whose output the port never computed
is where it goes another way: every known mistake is tried there, alone and then two at a time, and
the one is kept that gives tensors of the port again, in this layer and the following ones.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, islice, repeat
from typing import NamedTuple

import numpy as np

from keras2torch_birnn.porting.call_graph import nearest_sources, path_of, place_of
from keras2torch_birnn.porting.candidates import BEFORE
from keras2torch_birnn.porting.changes import Change, Maker, followed_by, in_one_call
from keras2torch_birnn.porting.checked_run import AS_PADDED, first_output
from keras2torch_birnn.porting.kept_results import are_same
from keras2torch_birnn.porting.many_trials import FAILURES
from keras2torch_birnn.porting.scoring import (
    EVERYTHING,
    Scoring,
    are_values_of,
    is_mask,
    same_values,
    tells,
)
from keras2torch_birnn.porting.step_changes import has_windows, mixes_steps, reads_mask
from keras2torch_birnn.porting.trial_order import stages
from keras2torch_birnn.porting.wiring_changes import steps_of_others
from keras2torch_birnn.reference import Trace
from keras2torch_birnn.spec import Array, Structure, leaves

# Trials at one layer at most, of single mistakes, of those that go together, and of all pairs.
_BUDGETS = (4000, 1000, 1000)
# Trials of several mistakes together in all searches of one comparison: each layer that nothing
# explains takes its whole budget, in each run.
_TOGETHER = 4000
# Changes that explain a layer equally well, of which is asked how they go on.
_TIED = 4
# Changes of which every choice is tried, to find the fewest that are enough.
_FEW = 6
# Kinds whose values a port may compute though it goes on with others.
_ON_THE_WAY = (
    "activation",
    "axes",
    "bias missing",
    "direction",
    "extra",
    "formula",
    "half left out",
    "last state",
    "left out",
    "masked steps",
    "merge mode",
    "normalize",
    "not loaded",
    "order",
    "other input",
    "other layer",
    "other operation",
    "other sum",
    "pool size",
    "scale",
    "strides",
)


@dataclass(frozen=True, eq=False)
class Unexplained:
    """A layer whose output no known change gives: the right output, and the port's nearest one.

    activation: that follows from what the right one follows from, value by value.
    """

    path: str
    right: Array
    nearest: Array | None
    activation: bool = False


class _Step(NamedTuple):
    """The first call that was wrong, the one whose mistake explains it, and that mistake."""

    first: str
    path: str
    changes: tuple[Change, ...]


class _Tried(NamedTuple):
    """Changes that were tried together, and with them the call's output and the model's."""

    changes: list[Change]
    outputs: Structure


def trials_together() -> Iterator[None]:
    """Return as many elements as trials of several mistakes may be made in one comparison."""
    return repeat(None, _TOGETHER)


@dataclass
class Search(Scoring):
    """A search for the changes behind one run of a port.

    ``found`` and ``unexplained`` grow while it runs; ``steps``: which call led to which of them.
    ``together``: has one element for each trial of several mistakes that may still be made.
    """

    together: Iterator[None] = field(default_factory=trials_together)
    unexplained: list[Unexplained] = field(default_factory=list)
    steps: list[_Step] = field(default_factory=list)

    def explain(self) -> bool:
        """Search until the port's outputs are explained; return whether they are."""
        given_up: set[str] = {one.path for one in self.unexplained}
        if self._try_evidence():
            return True
        explained = self._search(given_up)
        if (not explained or self.unexplained) and self._doubt_unconfirmed():
            explained = self._search({one.path for one in self.unexplained})
        return explained

    def _try_evidence(self) -> bool:
        """Try all that the port's weights show at once, as all of it is wrong for certain."""
        whole = [*self.found, *(one for one in self.evidence if one not in self.found)]
        trace = self.compute(whole)
        if trace is None or len(whole) == len(self.found) or not self.same_outputs(trace):
            return False
        if not all(one.explained_by(whole) for one in self.earlier):
            return False
        self.found[:] = whole
        self._drop_needless()
        return True

    def _search(self, given_up: set[str]) -> bool:
        """Look at one wrong layer after the other; return whether the outputs are explained."""
        for _ in range(len(self.layers) + len(self.evidence) + 4):
            trace = self.compute(self.found, note=True)
            if trace is None:
                return False
            if self.same_outputs(trace):
                self._drop_needless()
                return True
            path = self.first_wrong(trace, given_up)
            if path is None:
                return self._explain_end(trace)
            behind = any(path in self.later.get(one.path, ()) for one in self.unexplained)
            named = any(one.layer == path and one.words for one in self.found)
            first, better = path, self._try_at(path, trace, alone=behind or named)
            if better is None and not behind:
                path, better = self._try_behind(path, trace)
            if better is not None and self._takes_unexplained(path):
                # what it is given is only the nearest to the right one: all has to follow from it
                better = better if self._score(path, better)[0] >= EVERYTHING else None
            if better is not None:
                self.found += better
                self.steps.append(_Step(first, path, tuple(better)))
                continue
            if self._drop_misleading():
                return True
            if behind:  # what the port gives it is not known, only what is nearest to the right one
                return False
            given_up.add(path)
            if self._has_part(path, trace) or self._holds(path, trace):
                continue  # it is right, in the steps that it is given or in other pieces
            if not self._give_up(self._begins_at(path, trace), trace):
                return False
        return False

    def _takes_unexplained(self, path: str) -> bool:
        return any(one.path in self.sources.get(path, ()) for one in self.unexplained)

    def first_wrong(self, trace: Trace, given_up: Container[str] = ()) -> str | None:
        """Return the first call whose output the port never computed, nor any that use it.

        ``right`` has those that it computed. given_up: calls that are not asked for.
        """
        self.right = {path for path in trace.layers if self.computed(path, trace)}
        for path in trace.layers:
            used = self.later.get(path, frozenset())
            if path in self.right or path in given_up:
                continue
            if any(tells(trace.layers[other]) for other in used & self.right):
                continue
            if is_mask(trace.layers[path]):
                continue  # a port keeps masks in other forms, such as lengths
            return path
        return None

    # ---- trials ----

    def _try_at(self, path: str, trace: Trace, *, alone: bool = False) -> list[Change] | None:
        """Return the changes at this call that explain most of what follows, or None.

        trace: with the changes found so far. alone: try no two together. What cannot be tried on
        an unusual layer explains nothing.
        """
        try:
            return self._try_all_at(path, trace, alone=alone)
        except FAILURES:
            return None

    def _try_all_at(self, path: str, trace: Trace, *, alone: bool) -> list[Change] | None:
        """Return the changes that explain the port best at a call, None if none does.

        Single changes are tried first, then two together; alone: single ones only.
        """
        if path not in self.layers:
            return None
        evidence = self._at(path, self.evidence)
        own, before = self.changes_at(path, trace)
        usual = trace.layers.get(path)
        padded = bool(self.padding(self.found)) and not self._score(path, [AS_PADDED])[0]
        idle: set[int] = set()  # changes that make no difference here
        shown: dict[int, Change] = {}  # changes of calls before, whose outputs the port has
        for number in range(1 if alone else 3):
            if number:
                own, before = ([c for c in some if id(c) not in idle] for some in (own, before))
            stage = stages(
                evidence,
                own,
                before,
                self._changes_behind(path),
                self.found,
                shown=[*shown.values()],
                padded=padded,
            )[number]
            enough = (
                EVERYTHING + bool(self.gaps) if number == 0 else 2
            )  # of two: it and a later one
            best: tuple[int, list[_Tried]] = (0, [])
            left = self.together if number else repeat(None)
            pairs = zip(islice(stage, _BUDGETS[number]), left, strict=False)
            for some, score, found in self._scored(path, (some for some, _ in pairs)):
                if len(some) == 1 and are_same(found.layers[path], usual):
                    idle.add(id(some[0]))
                elif not number and self._shows_before(path, some, found, trace):
                    shown[id(some[-1])] = some[-1]
                if score > best[0]:
                    best = score, []
                if score and score == best[0]:
                    best[1].append(_Tried(some, (found.layers[path], tuple(found.outputs))))
                if score >= enough:
                    break
            if best[0]:
                return self._by_one_reader(path, self._likeliest(best[1]))
        return None

    def _by_one_reader(self, path: str, some: list[Change]) -> list[Change]:
        """Say of a mask that others read as well that it is this call that does not use it.

        Only if that alone explains everything.
        """
        if [one.kind for one in some] != ["mask missing"] or some[0].layer == place_of(path):
            return some
        behind = self.later.get(some[0].layer, frozenset())
        readers = [one for one in behind if one in self.layers and reads_mask(self.layers[one])]
        own = (one for one in self.changes_of(path) if one.kind == "mask missing")
        alone = (one for one in own if self._score(path, [one])[0] >= EVERYTHING)
        return [next(alone, some[0])] if len(readers) > 1 else some

    def _shows_before(self, path: str, some: Sequence[Change], trace: Trace, usual: Trace) -> bool:
        """Tell whether the port computed what a change of a call before this one gives there."""
        (one, *others) = some
        return not others and any(
            other in trace.layers
            and not are_same(trace.layers[other], usual.layers.get(other))
            and self.seen(other, trace)
            for other in nearest_sources(self.sources, path)[:BEFORE]
            if place_of(other) == place_of(one.layer)
        )

    def _try_behind(self, path: str, trace: Trace) -> tuple[str, list[Change] | None]:
        """Return the call behind this one whose own mistake explains what follows, and that.

        A port may compute two layers in one, as a convolution and its normalization, and never
        have the output of the first. Without such a call: this one and None.
        """
        for other, given in self.sources.items():
            if path in given and other in trace.layers:
                better = self._try_at(other, trace, alone=True)
                if better is not None:
                    return other, better
        right = first_output(trace, path)
        if self.run.nearest(right, ()) is not None:
            return path, None
        # The port has nothing of this kind: it may go on behind it with something else.
        for other in (one for one in trace.layers if one in self.later.get(path, ())):
            for one in steps_of_others(self.spec.graph, other, trace):
                if self._score(other, [one])[0] >= EVERYTHING:
                    return other, [one]
        return self._try_unseen(path, trace)

    def _try_unseen(self, path: str, trace: Trace) -> tuple[str, list[Change] | None]:
        """Try every later call of a port none of whose tensors is known, as one in NumPy."""
        if any(self.sources.get(one) for one in self.right):
            return path, None
        for other in (one for one in trace.layers if one in self.later.get(path, ())):
            better = self._try_at(other, trace, alone=True)
            if better is not None and self._score(other, better)[0] >= EVERYTHING:
                return other, better
        return path, None

    def _likeliest(self, tied: Sequence[_Tried]) -> list[Change]:
        """Choose among changes of which each gives a tensor of the port, by how it goes on.

        Those with the same outcome are alike: the first one is the likeliest.
        """
        apart: list[_Tried] = []
        for one in tied:
            if not any(are_same(one.outputs, other.outputs) for other in apart):
                apart.append(one)
        if len(apart) == 1:
            return apart[0].changes
        outlooks = [self._outlook(one.changes) for one in apart[:_TIED]]
        return apart[outlooks.index(max(outlooks))].changes

    def _outlook(self, some: Sequence[Change]) -> int:
        """Count the calls that are right with these changes and the best one at the next call."""
        found, right = list(self.found), self.right
        self.found += some
        try:
            trace = self.compute(self.found)
            if trace is None:
                return 0
            path = self.first_wrong(trace, {one.path for one in self.unexplained})
            layer = None if path is None else self.layers.get(path)
            if path is None or layer is None:
                return len(self.right)
            own = (*self.changes_of(path), *self._at(path, self.evidence))
            best = 0
            for _, score, _ in self._scored(path, ([one] for one in own)):
                best = max(best, score)
                if best >= EVERYTHING:
                    break
            return best + len(self.right)
        finally:
            self.found[:], self.right = found, right

    def _has_part(self, path: str, trace: Trace) -> bool:
        """Tell whether the port computed single steps alone of a layer that keeps them apart."""
        layer, values = self.layers.get(path), next(leaves(trace.layers[path]))
        if layer is None or mixes_steps(layer) or not self.later.get(path):
            return False
        return self.run.part(np.asarray(values, np.float64), self.valid.get(path)) is not None

    def _holds(self, path: str, trace: Trace) -> bool:
        """Tell whether all values of a call that others read are anywhere among the port's.

        Of a state they are among its steps, whichever of these the port goes on with.
        """
        values = next(leaves(trace.layers[path]))
        return (
            bool(self.later.get(path))
            and np.ndim(values) > 2
            and tells(trace.layers[path])
            and self.run.holds(values, self.valid.get(path))
        )

    def _begins_at(self, path: str, trace: Trace) -> str:
        """Return the layer before this one of which the port has more windows than Keras, or it."""
        for other in nearest_sources(self.sources, path)[:BEFORE]:
            layer = self.layers.get(other)
            if layer is None or not has_windows(layer) or self.seen(other, trace):
                continue
            values = first_output(trace, other)
            if self.run.contains(values, self.valid.get(other), of_rows=True):
                return other
        return path

    def _explain_end(self, trace: Trace) -> bool:
        """Explain outputs that differ though every layer's own was computed."""
        unknown = {one.path for one in self.unexplained}
        for ref in leaves(self.spec.graph.outputs):
            path = path_of(ref)
            if path in unknown:  # what follows from any tensor of the port tells nothing
                continue
            better = self._try_at(path, trace, alone=True)
            if better is not None and self._score(path, better)[0] >= EVERYTHING:
                self.found += better
                return True
        return False

    def _drop_misleading(self) -> bool:
        """Drop a change whose values the port had on its way, if all is explained without it."""
        for change in [one for one in self.found if one.kind in _ON_THE_WAY]:
            rest = [one for one in self.found if one is not change]
            if all(one.explained_by(rest) for one in (self, *self.earlier)):
                self.found[:] = rest
                return True
        return False

    def _drop_needless(self) -> None:
        """Drop changes without which the port's outputs are explained as well, earlier ones, too.

        Those before a layer that is not explained are kept: its output is what the port has there.
        """
        needed = {
            change.layer
            for change in self.found
            if any(one.path in self.later.get(change.layer, ()) for one in self.unexplained)
        }
        doubtful = [one for one in self.found if one.layer not in needed]
        count = len(doubtful)
        # The fewest that are enough: one may undo the other, as where a bias is added later.
        for size in range(count) if count <= _FEW else (count - 2, count - 1):
            for some in combinations(doubtful, size):
                rest = [one for one in self.found if one in some or one not in doubtful]
                if self.explained_by(rest) and not any(
                    one.explained_by(self.found) and not one.explained_by(rest)
                    for one in self.earlier
                ):
                    self.found[:] = rest
                    given = {one.layer for one in rest if one.kind == "unexplained"}
                    self.unexplained[:] = [one for one in self.unexplained if one.path in given]
                    return

    def _doubt_unconfirmed(self) -> bool:
        """Take back what nothing confirms: values that a right port may have had on its way.

        A layer without its activation, one step of many: a port computes those in any case. Only if
        it computed with them what follows, they went on. What was found behind them is taken back,
        too. Returns whether one can go on from what the port has there.
        """
        can_go_on = False
        for number, (first, path, some) in reversed(list(enumerate(self.steps))):
            told = [one for one in some if one.words]
            if len(told) < 2 and not all(one.kind in _ON_THE_WAY for one in told):
                continue
            trace = self.compute(self.found)
            if trace is None or path not in trace.layers or self._is_confirmed(path, trace):
                continue
            later = self.later.get(path, frozenset())
            wrong = [
                *some,
                *(c for _, p, more in self.steps[number + 1 :] if p in later for c in more),
            ]
            before = [one for one in self.found if one not in wrong]
            behind = {one.path for one in self.unexplained} & self.later.get(path, frozenset())
            self.found[:] = [
                one for one in before if one.kind != "unexplained" or one.layer not in behind
            ]
            self.unexplained[:] = [one for one in self.unexplained if one.path not in behind]
            right = self.compute(self.found)
            if any(first in self.later.get(one.path, ()) for one in self.unexplained):
                continue  # what the port gives it is not known
            can_go_on = right is not None and self._give_up(first, right)
        return can_go_on

    def _is_confirmed(self, path: str, trace: Trace) -> bool:
        """Tell whether the port computed a later layer from this one's changed output.

        If these are the values of another call, a right port may compute the later layer from that.
        """
        given = {one.path for one in self.unexplained}
        own = first_output(trace, path)
        behind = self.later.get(path, frozenset())
        return not are_values_of(self.right - behind - {path}, own, trace) and any(
            one not in given
            and not any(one in self.later.get(other, ()) for other in given)
            and self.shown(one, trace, ())
            and not same_values(own, trace.layers[one])
            for one in behind
        )

    def _curve(self, path: str) -> Array | None:
        """Return what the port has for a layer whose activation alone is another one."""
        found = self._before_activation(path)
        return None if found is None else self.run.curve(found[1], self.valid.get(path))

    def _give_up(self, path: str, trace: Trace) -> bool:
        """Note a layer that is not explained; tell whether one can go on from what the port has."""
        right = first_output(trace, path)
        curve = self._curve(path) if path in self.layers else None
        near = self.run.nearest(right, ()) if curve is None else curve
        self.unexplained.append(Unexplained(path, right, near, activation=curve is not None))
        layer = self.layers.get(path)
        if near is None or layer is None:
            return False
        change = Maker(path, layer).change("unexplained", "", followed_by(lambda _: near))
        if self._is_called_again(path):
            change = replace(in_one_call(change, path), words="")
        self.found.append(change)
        return True
