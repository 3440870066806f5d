"""Find the changes of Keras' computation that make it give what a port gives, by trying.

The layers are looked at in the model's order. The first one whose output the port never computed
is where it goes another way: every known mistake is tried there, alone and then two at a time, and
the one is kept that gives tensors of the port again, in this layer and the following ones.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, combinations, islice, repeat
from typing import NamedTuple

import numpy as np

from keras2torch_birnn.errors import printable
from keras2torch_birnn.porting.activation_changes import moved_before_activation
from keras2torch_birnn.porting.attention_changes import QUERY_MASK_UNUSED
from keras2torch_birnn.porting.call_graph import nearest_sources, path_of, place_of
from keras2torch_birnn.porting.changes import (
    Change,
    Maker,
    configured,
    followed_by,
    in_one_call,
    reading,
)
from keras2torch_birnn.porting.checked_run import AS_PADDED, CheckedRun, first_output
from keras2torch_birnn.porting.general_changes import (
    added_to,
    clipped_to,
    input_scaled,
    on_line,
    reordered,
    scaled_by,
    show_bounds,
    show_line,
)
from keras2torch_birnn.porting.kept_results import are_same
from keras2torch_birnn.porting.layer_changes import (
    DROPOUTS,
    MASKING,
    MOVING,
    changes_of,
    is_recurrent,
    mask_changes,
)
from keras2torch_birnn.porting.many_trials import FAILURES, Rest, last_reached
from keras2torch_birnn.porting.observing import keep_valid
from keras2torch_birnn.porting.step_changes import (
    has_windows,
    mixes_steps,
    reading_part,
    reads_mask,
)
from keras2torch_birnn.porting.trial_order import stages
from keras2torch_birnn.porting.wiring_changes import (
    lost_mask_changes,
    other_input_changes,
    steps_of_others,
    sum_of,
    wiring_changes,
)
from keras2torch_birnn.reference import Trace
from keras2torch_birnn.spec import Array, Structure, TensorRef, leaves

# Trials at one layer at most, of single mistakes, of those that go together, and of all pairs.
_BUDGETS = (4000, 1000, 1000)
# Trials of several mistakes together in all searches of one comparison: each layer that nothing
# explains takes its whole budget, in each run.
_TOGETHER = 4000
# Trials that are computed at once: few at first, of which one may explain everything.
_AT_ONCE = (4, 8, 16, 32, 64)
# Changes that explain a layer equally well, of which is asked how they go on.
_TIED = 4
# Earlier tensors at most of which sums are looked for.
_TERMS = 6
# Layers before a wrong one, the nearest in the graph, whose mistakes are tried there.
_BEFORE = 3
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
# Kinds whose values a right port computes as well, before it goes on.
_COMPUTED_ANYWAY = ("half left out", "left out", "other sum")
# Kinds that leave the right values, in another order of axes, in which they count as computed.
_IN_ANY_ORDER = ("not permuted", "repeated")
# Kinds that tell of the port's values at masked steps.
_AT_MASKED_STEPS = (
    "masked steps",
    "mask missing",
    "mask rule",
    "held state",
    "padding row",
)
# Score of changes that explain everything; one more if rows with gaps, too.
_ALL = 1 << 20


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
class Search(CheckedRun):
    """A search for the changes behind one run of a port.

    ``evidence``: changes that follow from the port's weights; ``guesses``: others that are known
    for this model alone. ``found`` and ``unexplained`` grow while it runs; ``right``: the calls
    whose output the port computed, with the changes found so far; ``steps``: which call led to
    which of them. ``earlier``: on other inputs; what explains this run must hold there, too.
    ``gaps``: on rows with gaps; of what explains this run, that is preferred which holds there.
    ``together``: has one element for each trial of several mistakes that may still be made.
    """

    evidence: Sequence[Change]
    guesses: Sequence[Change]
    found: list[Change]
    earlier: Sequence[Search] = ()
    gaps: Search | None = None
    together: Iterator[None] = field(default_factory=trials_together)
    unexplained: list[Unexplained] = field(default_factory=list)
    right: set[str] = field(default_factory=set)
    steps: list[_Step] = field(default_factory=list)
    _known: dict[str, Sequence[Change]] = field(default_factory=dict)
    _rests: dict[str, Rest | None] = field(default_factory=dict)

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
                better = better if self._score(path, better)[0] >= _ALL else None
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

    def explain_masked_steps(self) -> tuple[str, Change | None] | None:
        """Return the call where masked steps of the outputs differ, and the mistake if it is known.

        None: they do not, or torch's own layers give what the port has there.
        """
        if self.same_outputs(self.exact, everywhere=True):
            return None
        usual = self._usual_at_masked_steps()
        trace = self.compute(usual)
        if trace is None or self.same_outputs(trace, everywhere=True):
            return None
        for path in self.layers:
            for one in self._changes_of(path):
                if one.kind in _AT_MASKED_STEPS:
                    found = self.compute([*usual, one])
                    if found is not None and self.same_outputs(found, everywhere=True):
                        return path, one
        ends = [path_of(ref) for ref in leaves(self.spec.graph.outputs)]
        masked = [path for path in trace.layers if self.valid.get(path) is not None]
        return next((one for one in masked if not self._has_all(one, trace)), ends[0]), None

    def _usual_at_masked_steps(self) -> list[Change]:
        """Return what torch's own layers do at masked steps, where the port has that.

        These are zeros behind packed rows, and an attention that knows no mask of the query.
        """
        usual: list[Change] = []
        for path, layer in self.layers.items():
            valid = self.valid.get(path)
            if valid is None or valid.all():
                continue
            if is_recurrent(layer):
                zeros = followed_by(partial(keep_valid, valid=valid))
                own = [Maker(path, layer).change("masked steps", "", zeros)]
            elif layer.class_name == "MultiHeadAttention":
                own = [one for one in self._changes_of(path) if one.words == QUERY_MASK_UNUSED]
            else:
                continue
            trace = self.compute([*usual, *own])
            if trace is not None and path in trace.layers and self._has_all(path, trace):
                usual += own
        return usual

    def _has_all(self, path: str, trace: Trace) -> bool:
        """Tell whether the port computed the output of a call at masked steps, too."""
        return self.run.has(first_output(trace, path))

    def first_wrong(self, trace: Trace, given_up: Container[str] = ()) -> str | None:
        """Return the first call whose output the port never computed, nor any that use it.

        ``right`` has those that it computed. given_up: calls that are not asked for.
        """
        self.right = {path for path in trace.layers if self.computed(path, trace)}
        for path in trace.layers:
            used = self.later.get(path, frozenset())
            if path in self.right or path in given_up:
                continue
            if any(_tells(trace.layers[other]) for other in used & self.right):
                continue
            if _is_mask(trace.layers[path]):
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
        layer = self.layers.get(path)
        if layer is None:
            return None
        evidence = self._at(path, self.evidence)
        own = [*self._mask_sources(path), *self._at(path, self.guesses), *self._changes_of(path)]
        if not is_recurrent(layer):  # an attention takes its masks apart from what others read
            own.sort(key=lambda one: one.kind != "mask missing" or one.layer != path)
        own += wiring_changes(self.spec.graph, path, trace)
        before = [*self._changes_before(path), *self._scaled(path, trace)]
        before += self._changes_in_call(path)
        for other in nearest_sources(self.sources, path):
            before += lost_mask_changes(self.spec.graph, other)
        before += [*other_input_changes(self.spec.graph, path, trace), *self._sums(path, trace)]
        before += [*self._parts(path, trace), *self._padded_inputs(path)]
        own = [*(one for one in before if one.kind in _IN_ANY_ORDER), *own]
        known = {(one.layer, one.kind, one.words) for one in self.found}
        own, before = (
            [one for one in some if (one.layer, one.kind, one.words) not in known]
            for some in (own, before)
        )
        if layer.class_name in MOVING:
            before += [one for one in own if one.kind == "extra"]
            own = [one for one in own if one.kind != "extra"]
        before.sort(key=self._is_of_moving)
        own.sort(key=_is_unused_operation)  # where the layer's own mask is, that tells more
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
            enough = _ALL + bool(self.gaps) if number == 0 else 2  # of two: it and a later one
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
        own = (one for one in self._changes_of(path) if one.kind == "mask missing")
        alone = (one for one in own if self._score(path, [one])[0] >= _ALL)
        return [next(alone, some[0])] if len(readers) > 1 else some

    def _shows_before(self, path: str, some: Sequence[Change], trace: Trace, usual: Trace) -> bool:
        """Tell whether the port computed what a change of a call before this one gives there."""
        (one, *others) = some
        return not others and any(
            other in trace.layers
            and not are_same(trace.layers[other], usual.layers.get(other))
            and self.seen(other, trace)
            for other in nearest_sources(self.sources, path)[:_BEFORE]
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
                if self._score(other, [one])[0] >= _ALL:
                    return other, [one]
        return self._try_unseen(path, trace)

    def _try_unseen(self, path: str, trace: Trace) -> tuple[str, list[Change] | None]:
        """Try every later call of a port none of whose tensors is known, as one in NumPy."""
        if any(self.sources.get(one) for one in self.right):
            return path, None
        for other in (one for one in trace.layers if one in self.later.get(path, ())):
            better = self._try_at(other, trace, alone=True)
            if better is not None and self._score(other, better)[0] >= _ALL:
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
            own = (*self._changes_of(path), *self._at(path, self.evidence))
            best = 0
            for _, score, _ in self._scored(path, ([one] for one in own)):
                best = max(best, score)
                if best >= _ALL:
                    break
            return best + len(self.right)
        finally:
            self.found[:], self.right = found, right

    def _at(self, path: str, changes: Iterable[Change]) -> list[Change]:
        return [one for one in changes if one.layer == place_of(path)]

    def _changes_of(self, path: str) -> Sequence[Change]:
        """Return the known mistakes of a call: the same ones each time, whose results are kept."""
        found = self._known.get(path)
        if found is None:
            found = self._known[path] = list(changes_of(path, self.layers[path]))
        return found

    def _changes_in_call(self, path: str) -> list[Change]:
        """Return the same mistakes in this call alone, of a layer that is called several times."""
        if not self._is_called_again(path):
            return []
        own = (*self._at(path, self.guesses), *self._changes_of(path))
        return [in_one_call(one, path) for one in own]

    def _is_called_again(self, path: str) -> bool:
        return sum(place_of(other) == place_of(path) for other in self.layers) > 1

    def _mask_sources(self, path: str) -> Iterator[Change]:
        """Yield the mistakes with masks that are made before this call."""
        for other, layer in self.layers.items():
            if path in self.later.get(other, ()):
                yield from mask_changes(place_of(other), layer, self._masking(other))

    def _masking(self, path: str) -> str:
        """Return the Embedding or Masking that makes a mask by an operation at this call, or it."""
        read = set(self.sources.get(path, ()))
        read |= {other for one in read for other in self.sources.get(one, ())}
        found = (
            other
            for other, layer in self.layers.items()
            if layer.class_name in MASKING and set(self.sources.get(other, ())) <= read
        )
        own = self.layers[path].class_name
        return next(found, path) if own.startswith("ops.") else place_of(path)

    def _scaled(self, path: str, trace: Trace) -> Iterator[Change]:
        """Yield the factors by which the port multiplied this call's output or one before it."""
        for other in (path, *nearest_sources(self.sources, path)[:_BEFORE]):
            layer = self.layers.get(other)
            values = next(iter(leaves(trace.layers.get(other))), None)
            if layer is None or not isinstance(values, np.ndarray) or self._is_before(other):
                continue  # (what is before a dropout has its values)
            maker, given = Maker(other, layer), np.asarray(values, np.float64)
            yield from self._moved(maker, "output", given, self.valid.get(other))
            for added in self.run.added(given, self.valid.get(other)):
                yield added_to(maker, added)
        yield from self._moved_before_activation(path)
        if not self.sources.get(path):  # it takes an input of the model
            for given in self.inputs:
                yield from self._moved(
                    Maker(path, self.layers[path]), "input", np.asarray(given, np.float64), None
                )
        yield from self._scaled_inputs(path, trace)

    def _moved(
        self, maker: Maker, what: str, values: Array, valid: Array | None
    ) -> Iterator[Change]:
        """Yield the factors, orders and bounds of what the port made of an input or an output."""
        for line in self.run.lines(values, valid):
            yield scaled_by(maker, what, line)
        for order in self.run.orders(values, valid):
            yield reordered(maker, what, order)
        for bounds in self.run.bounds(values, valid):
            yield clipped_to(maker, what, bounds)

    def _is_before(self, path: str) -> bool:
        """Tell whether a dropout gives what the one call before it gives to it alone."""
        sources = self.sources.get(path, ())
        return self.layers[path].class_name in DROPOUTS and not any(map(self._is_shared, sources))

    def _is_shared(self, path: str) -> bool:
        """Tell whether several calls take the output of this one."""
        return sum(path in given for given in self.sources.values()) > 1

    def _scaled_inputs(self, path: str, trace: Trace) -> Iterator[Change]:
        """Yield the factors of one input of this call, whose source others read as it is."""
        calls = (one for one in self.spec.graph.calls if path_of(one) == path)
        refs = [ref for call in calls for ref in leaves(call.args)]
        for number, ref in enumerate(refs):
            other = path_of(ref) if isinstance(ref, TensorRef) else ""
            if self._is_shared(other) and other in trace.layers:
                values = np.asarray(list(leaves(trace.layers[other]))[ref.output], np.float64)
                for line in self.run.lines(values, self.valid.get(other)):
                    yield input_scaled(Maker(path, self.layers[path]), number, line)

    def _parts(self, path: str, trace: Trace) -> Iterator[Change]:
        """Yield that the port cuts off steps here, which Keras does at a later call or never.

        Or that it cuts them off what this call alone reads.
        """
        behind = [one for one in trace.layers if one in self.later.get(path, ())]
        yield from self._cut(path, path, [path, *behind], trace)
        for source in nearest_sources(self.sources, path)[:1]:
            yield from self._cut(source, path, [path], trace)

    def _cut(
        self, source: str, path: str, readers: Sequence[str], trace: Trace
    ) -> Iterator[Change]:
        """Yield that of the steps of one call's output these readers are given a part alone."""
        values = first_output(trace, source)
        found = self.run.part(values, self.valid.get(source))
        if found is None:
            return
        start, stop = found
        steps = values.shape[1]
        users = [one for one in readers if one in self.layers and "/" not in one]
        some = reading_part(start, stop, steps)
        applied = {
            (place_of(one), self.layers[one].class_name): some
            for one in users
            if mixes_steps(self.layers[one])
        }
        ends = "first" if start == 0 else "last"
        words = f"the {ends} {stop - start} of {steps} steps alone are used from here on"
        cut = next((one for one in readers[1:] if self._cuts(one, start, stop, trace)), None)
        if cut is not None:
            words = f"its steps are cut off before {printable(path)} already, Keras does it here"
        if applied:
            yield Change("steps", cut or path, words, applied)

    def _padded_inputs(self, path: str) -> Iterator[Change]:
        """Yield steps that the port adds to an input of the model, which are read as data."""
        near = (path, *nearest_sources(self.sources, path)[:_BEFORE])
        for other in (one for one in near if one in self.layers and not self.sources.get(one)):
            layer = self.layers[other]
            for front, back, value in chain.from_iterable(map(self.run.paddings, self.inputs)):
                steps = f"{front + back} {'step' if front + back == 1 else 'steps'} of {value:g}"
                words = f"{steps} {'in front of' if front else 'behind'} its input are read, too"
                apply = reading(partial(_with_ends, front, back, value))
                yield Maker(other, layer).change("steps", words, apply)

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
            and _tells(trace.layers[path])
            and self.run.holds(values, self.valid.get(path))
        )

    def _begins_at(self, path: str, trace: Trace) -> str:
        """Return the layer before this one of which the port has more windows than Keras, or it."""
        for other in nearest_sources(self.sources, path)[:_BEFORE]:
            layer = self.layers.get(other)
            if layer is None or not has_windows(layer) or self.seen(other, trace):
                continue
            values = first_output(trace, other)
            if self.run.contains(values, self.valid.get(other), of_rows=True):
                return other
        return path

    def _cuts(self, path: str, start: int, stop: int, trace: Trace) -> bool:
        """Tell whether a call of the model does nothing but take these steps."""
        given = [one for one in self.sources.get(path, ()) if one in trace.layers]
        if len(given) != 1:
            return False
        whole, part = (np.asarray(next(leaves(trace.layers[one]))) for one in (given[0], path))
        return part.ndim > 2 and np.array_equal(whole[:, start:stop], part)

    def _is_of_moving(self, change: Change) -> bool:
        """Tell whether something follows a layer that moves values: what computed them tells it."""
        layer = self.layers.get(change.layer)
        if change.kind != "extra" or layer is None:
            return False
        return layer.class_name in MOVING or "MaxPooling" in layer.class_name

    def _sums(self, path: str, trace: Trace) -> Iterator[Change]:
        """Yield sums of earlier tensors that the port has in the place of this call's output."""
        for other in (path, *nearest_sources(self.sources, path)[:_BEFORE]):
            layer = self.layers.get(other)
            before = nearest_sources(self.sources, other)
            arrays = {
                one: first_output(trace, one)
                for one in (*before, other)
                if one in trace.layers and "/" not in one
            }
            if layer is None or other not in arrays or other not in self.layers:
                continue
            shape = arrays[other].shape
            terms = {one: x for one, x in arrays.items() if x.shape == shape}
            terms = dict([*islice(terms.items(), _TERMS), (other, arrays[other])])
            if len(terms) < 2 or not np.issubdtype(arrays[other].dtype, np.floating):
                continue
            for factors in self.run.sums([*terms.values()], self.valid.get(other)):
                yield sum_of(other, layer, dict(zip(terms, factors, strict=True)))

    def _changes_before(self, path: str) -> list[Change]:
        """Return the mistakes of the calls just before: an operation may follow what was right."""
        return [
            change
            for other in nearest_sources(self.sources, path)[:_BEFORE]
            for change in self._changes_of(other)
            if change.kind != "gate order"
        ]

    def _changes_behind(self, path: str) -> Iterator[Change]:
        """Yield the mistakes of the calls that take the output of this one."""
        for other, given in self.sources.items():
            if path in given:
                yield from self._at(other, self.evidence)
                for change in self._changes_of(other):
                    if change.kind != "gate order":
                        yield change

    def _score(self, path: str, some: Sequence[Change]) -> tuple[int, Trace | None]:
        """Rate changes, and return what the reference computes with them, if it is anything.

        The score is 0 if that is no tensor of the port.
        """
        trace = self.compute([*self.found, *some])
        if trace is None or path not in trace.layers:
            return 0, None
        return self._rated(path, some, trace), trace

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

    def _rated(self, path: str, some: Sequence[Change], trace: Trace) -> int:
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
            return _ALL + (self.gaps is not None and self.gaps.explained_by(whole))
        if not _tells(trace.layers[shown]):
            return 0
        if not self.later.get(path) and len(list(leaves(self.spec.graph.outputs))) == 1:
            return 0  # it is the output, which is another one
        own = first_output(trace, path)
        if len([one for one in some if one is not AS_PADDED]) > 1:
            before = {other for other in self.right if path in self.later.get(other, ())}
            if _are_values_of(before, own, trace):
                return 0  # there the port has them from
        behind = self.later.get(path, frozenset())
        elsewhere = self.right - behind - {path}
        later = sum(
            self.shown(one, trace, some)
            and _tells(trace.layers[one])
            and not _same_values(own, trace.layers[one])
            and not _are_values_of(elsewhere, first_output(trace, one), trace)
            for one in behind
        )
        if not later and any(one.kind in _COMPUTED_ANYWAY for one in some):
            return 0  # a right port computes each half, and what goes into a layer, too
        if not later and _are_values_of(self.right, own, trace):
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
            if own is not None and not _are_values_of(self.right, own, trace):
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
            not _is_mask(trace.layers[other]) and not self.computed(other, trace)
            for other in self.right - behind - {path}
        )

    def _explain_end(self, trace: Trace) -> bool:
        """Explain outputs that differ though every layer's own was computed."""
        unknown = {one.path for one in self.unexplained}
        for ref in leaves(self.spec.graph.outputs):
            path = path_of(ref)
            if path in unknown:  # what follows from any tensor of the port tells nothing
                continue
            better = self._try_at(path, trace, alone=True)
            if better is not None and self._score(path, better)[0] >= _ALL:
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
        return not _are_values_of(self.right - behind - {path}, own, trace) and any(
            one not in given
            and not any(one in self.later.get(other, ()) for other in given)
            and self.shown(one, trace, ())
            and not _same_values(own, trace.layers[one])
            for one in behind
        )

    def _curve(self, path: str) -> Array | None:
        """Return what the port has for a layer whose activation alone is another one."""
        found = self._before_activation(path)
        return None if found is None else self.run.curve(found[1], self.valid.get(path))

    def _before_activation(self, path: str) -> tuple[Maker, Array] | None:
        """Return what makes changes of a layer with an activation, and what that reads."""
        layer = self.layers[path]
        while layer.class_name == "TimeDistributed":
            layer = layer.parts["layer"]
        if is_recurrent(layer) or "activation" not in layer.config:
            return None
        maker = Maker(path, layer)
        linear = maker.change("", "", configured(activation="linear"))
        trace = self.compute([*self.found, linear])
        if trace is None or path not in trace.layers:
            return None
        return maker, first_output(trace, path)

    def _moved_before_activation(self, path: str) -> Iterator[Change]:
        """Yield the factors and bounds of what a layer's activation reads."""
        found = self._before_activation(path)
        if found is None or found[0].config["activation"] == "linear":
            return
        maker, values = found
        for line in self.run.lines(values, self.valid.get(path)):
            yield moved_before_activation(maker, show_line(*line), partial(on_line, *line))
        for low, high in self.run.bounds(values, self.valid.get(path)):
            clip = partial(np.clip, a_min=low, a_max=high)
            yield moved_before_activation(maker, show_bounds(low, high), clip)

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


def _with_ends(front: int, back: int, value: float, x: Array) -> Array:
    """Add steps of one value in front of (B, T, ...) and behind it."""
    widths = [(0, 0), (front, back), *[(0, 0)] * (x.ndim - 2)]
    longer: Array = np.pad(x, widths, constant_values=value)
    return longer


def _is_unused_operation(change: Change) -> bool:
    """Tell whether a mask that an operation makes is not used."""
    made = any(name.startswith("ops.") for _, name in change.applied)
    return made and change.kind == "mask missing"


def _are_values_of(calls: Iterable[str], values: Array, trace: Trace) -> bool:
    """Tell whether these are the values of one of some calls, maybe in another shape."""
    flat = np.ravel(values)
    return any(
        np.size(array) == flat.size and np.allclose(np.ravel(np.asarray(array, np.float64)), flat)
        for path in calls
        for array in leaves(trace.layers[path])
    )


def _same_values(values: Array, output: Structure) -> bool:
    """Tell whether a layer hands on what it is given, maybe in another shape."""
    return np.array_equal(np.ravel(values), np.ravel(next(iter(leaves(output)))))


def _tells(output: Structure) -> bool:
    """Tell whether values are of any kind that a port does not compute for other reasons, too.

    Zeros and masks are of no such kind.
    """
    values = next(iter(leaves(output)), None)
    return isinstance(values, np.ndarray) and len(np.unique(values)) >= min(3, max(2, values.size))


def _is_mask(output: Structure) -> bool:
    return all(isinstance(one, np.ndarray) and one.dtype == bool for one in leaves(output))
