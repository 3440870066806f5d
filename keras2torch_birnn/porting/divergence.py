"""Where a port differs from Keras first, and which of the known mistakes explains it.

The calls of the model are walked in their order. The first one that the port never computed, though
it computed what that call reads, is where it differs. The rewrites of that layer are computed on
this call alone. One counts if the port has its value on all inputs, and something behind it, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from keras2torch_birnn.porting.call_graph import direct_sources, later_calls, place_of
from keras2torch_birnn.porting.checked_run import CheckedRun, Traced, same
from keras2torch_birnn.porting.layer_call import Apply, Key, LayerCall, Rewrite, given
from keras2torch_birnn.porting.observing import FAILURES
from keras2torch_birnn.porting.rewrites import USING_MASKS, Around, rewrites_of
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import ModelSpec, leaves, map_structure
from keras2torch_birnn.verification.layer_check import calls_of

# Results that are known of calls, for each run
Forced: TypeAlias = tuple[Mapping[Key, Result], ...]
# At most: rewrites at one place that are looked into further, mistakes in a row that nothing
# confirms yet, and mistakes that are told.
_LOOKED_INTO, _UNSURE, _EXPLAINED = 4, 2, 8


@dataclass(frozen=True)
class Explained:
    """A mistake: the call, what it does, and whether something behind it shows it, too."""

    key: Key
    rewrite: Rewrite
    usual: tuple[Result, ...]
    results: tuple[Result, ...]
    confirmed: bool = True


@dataclass(frozen=True)
class Walked:
    """How far a port is explained.

    ``found``: the mistakes, in order; ``forced``: what is known of their calls. ``left``: the call
    at which it differs for an unknown reason; None: at none, all outputs are explained.
    """

    found: tuple[Explained, ...]
    forced: Forced
    left: Key | None = None


# Stands for what the port returns, where it computed every call.
OUTPUTS: Key = ("the outputs", "")
# Kinds whose value is that of another call: that a port has it tells little.
_OF_KNOWN_CALLS = ("left out", "half left out", "masked steps")
AS_PADDED = Rewrite(
    "masked steps",
    "it reads steps that a mask leaves out, where the port has other values than Keras",
    LayerCall.run,
)


class _Option(NamedTuple):
    """A rewrite at a call, and what it gives there in every run."""

    key: Key
    rewrite: Rewrite
    usual: tuple[Result, ...]
    results: tuple[Result, ...]


class Walk:
    """A walk through a model's calls beside several runs of its port."""

    def __init__(self, spec: ModelSpec, runs: Sequence[CheckedRun], *, rewriting: bool = True):
        self.spec, self.runs, self.rewriting = spec, runs, rewriting
        self.sources = direct_sources(spec.graph, "")
        self.later = later_calls(self.sources)
        self.layers = dict(calls_of(spec.root, ""))

    def explain(self) -> Walked:
        """Walk as far as the port's values are explained."""
        walked = self._go_on(tuple({} for _ in self.runs), (), True)
        if walked.left is None or not walked.found:
            return walked
        *before, last = walked.found
        if last.rewrite.kind not in _OF_KNOWN_CALLS:
            return walked
        forced = tuple(
            {key: result for key, result in own.items() if key != last.key} for own in walked.forced
        )
        return Walked(tuple(before), forced, last.key)  # what follows would show it

    @cached_property
    def nodes(self) -> list[Key]:
        """The calls that are looked at, in their order: each layer's, before it its two halves."""
        known = self.runs[0].exact.results
        found: list[Key] = []
        for key, (output, _) in known.items():
            path, name = key
            if not np.issubdtype(np.asarray(next(leaves(output))).dtype, np.floating):
                continue  # a mask, or ids, which a port may have in other forms
            layer = self.layers.get(path)
            if layer is not None and layer.class_name == name and name != "InputLayer":
                found.append(key)
            outer, _, part = path.rpartition("/")
            both = self.layers.get(outer)
            if both is not None and part in both.parts and both.class_name == "Bidirectional":
                found.append(key)
        return found

    def halves_of(self, key: Key) -> list[Key]:
        """Return the calls of both halves of a Bidirectional, none of another layer."""
        return [one for one in self.nodes if one[1] != key[1] and outer_of(one, self) == key]

    def seen(self, key: Key, traced: Sequence[Traced]) -> bool:
        """Tell whether the port computed a call's output in every run."""
        pairs = zip(self.runs, traced, strict=True)
        return all(key in one.results and run.has(key, one.results[key][0]) for run, one in pairs)

    def behind(self, key: Key) -> list[Key]:
        """Return the calls that are computed from a call's output."""
        path = outer_of(key, self)[0]
        later = self.later.get(path, set())
        return [
            one
            for one in self.nodes
            if outer_of(one, self)[0] in later or (one[0] == path and one[0] != key[0])
        ]

    def first_wrong(self, traced: Sequence[Traced], forced: Forced) -> Key | None:
        """Return the first call that the port did not compute, nor anything behind it."""
        for key in self.nodes:
            if key in forced[0] or key not in traced[0].results:  # a half of a known call
                continue
            if not self.seen(key, traced):
                if not any(self.seen(one, traced) for one in self.behind(key)):
                    return key
        return None

    def right_before(self, key: Key) -> list[str]:
        """Return the calls whose outputs a call reads."""
        path = outer_of(key, self)[0]
        return [one for one in self.sources.get(path, ()) if one in self.later]

    # ---- rewriting -------------------------------------------------------------------------------

    def _go_on(self, forced: Forced, found: tuple[Explained, ...], confirmed: bool) -> Walked:
        traced = [run.record(own) for run, own in zip(self.runs, forced, strict=True)]
        pairs = list(zip(self.runs, traced, strict=True))
        if all(run.same_outputs(one.trace) for run, one in pairs):
            return Walked(tuple(replace(one, confirmed=True) for one in found), forced)
        if (
            found
            and not confirmed
            and any(self.seen(x, traced) for x in self.behind(found[-1].key))
        ):
            found = tuple(replace(one, confirmed=True) for one in found)
        wrong = self.first_wrong(traced, forced)
        best = Walked(found, forced, wrong or OUTPUTS)
        if not self.rewriting or len(found) >= _EXPLAINED:
            return best
        unsure = len(found) - _sure_of(found)
        for some in self._likeliest(wrong, traced, forced, unsure):
            for option in some[:_LOOKED_INTO]:
                one = Explained(*option, confirmed=False)
                more = _more(forced, option)
                fits = all(self._record(*pair) for pair in zip(self.runs, more, strict=True))
                told = [(x.key, x.rewrite.words) for x in found]
                if not fits or (one.key, one.rewrite.words) in told:
                    continue
                walked = self._go_on(more, (*found, one), False)
                if walked.left is None:
                    return walked
                if _sure(walked) > _sure(best):
                    best = walked
                elif len(best.found) == len(found) and option.key == wrong:
                    best = Walked((*found, one), forced, wrong)
            if _sure(best) > len(found):
                return best
        return best

    def _likeliest(
        self, wrong: Key | None, traced: Sequence[Traced], forced: Forced, unsure: int
    ) -> Iterator[list[_Option]]:
        """Yield rewrites that explain all outputs, or whose value something behind confirms.

        Then those of the call itself whose value the port has, and at last those whose value it
        does not show, but what is behind it. ``unsure``: mistakes before it that nothing confirms;
        another one in the same layer may.
        """
        if unsure > _UNSURE:
            return
        places = self._places(wrong)
        whole = [one for one in places if wrong and outer_of(one, self) == outer_of(wrong, self)]
        places = whole if unsure and whole else places
        unseen = {key for key in self.nodes if not self.seen(key, traced)}
        groups: dict[str, list[_Option]] = {"outputs": [], "behind": [], "": []}
        for key in places:
            for option in self._options(key, traced, forced):
                shows = self._shows(option, forced, unseen)
                if shows or key in whole:
                    groups[shows].append(option)
        yield groups["outputs"][:1]
        yield sorted(groups["behind"], key=lambda one: one.rewrite.kind == "masked steps")
        yield sorted(groups[""], key=lambda one: one.rewrite.kind in _OF_KNOWN_CALLS)
        for key in places if not unsure else ():
            for option in self._options(key, traced, forced, unseen):
                if self._shows(option, forced, unseen):
                    yield [option]
                    return

    def _shows(self, option: _Option, forced: Forced, unseen: Collection[Key]) -> str:
        """Tell what the port has with a rewrite: "outputs" all of them, or calls "behind" it."""
        outputs, behind = True, [key for key in self.behind(option.key) if key in unseen]
        every = zip(self.runs, _more(forced, option), strict=True)
        for run, own in sorted(every, key=lambda pair: pair[0] is self.runs[0], reverse=True):
            traced = self._record(run, own)
            outputs = outputs and traced is not None and run.same_outputs(traced.trace)
            if not outputs:
                behind = [key for key in behind if traced is not None and _has(run, key, traced)]
                if not behind:
                    return ""
        return "outputs" if outputs else "behind"

    def _record(self, run: CheckedRun, forced: Mapping[Key, Result]) -> Traced | None:
        try:
            return run.record(forced)
        except FAILURES:
            return None

    def _places(self, wrong: Key | None) -> list[Key]:
        """Return the calls at which a mistake may be, if this one is the first that is not seen.

        What it reads may be seen, and changed before it is read.
        """
        if wrong is None:
            ends = set(self.runs[0].output_paths())
            return [key for key in self.nodes if outer_of(key, self)[0] in ends][::-1]
        whole = outer_of(wrong, self)
        own = [*self.halves_of(whole), whole]
        before = set(self.sources.get(whole[0], ()))
        own += [key for key in self.nodes if key[0] in before]
        return [*own, *(one for one in self.behind(whole) if one not in own)]

    def _options(
        self,
        key: Key,
        traced: Sequence[Traced],
        forced: Forced,
        unseen: Collection[Key] | None = None,
    ) -> Iterator[_Option]:
        """Yield the rewrites of a call whose value the port shows; with ``unseen`` what is behind.

        These are the calls behind it that the port has not shown without the rewrite.
        """
        if key not in traced[0].calls:
            return
        calls = [one.calls[key] for one in traced]
        halves = [half for half in self.halves_of(key) if half in forced[0]]
        known = [
            {(place_of(path), name): given(own[path, name]) for path, name in halves}
            for own in forced
        ]
        usual = [one.results[key] for one in traced]
        order = sorted(
            range(len(calls)), key=lambda n: self.runs[n].has(key, usual[n][0])
        )  # where it differs first
        behind = [one for one in self.behind(key) if one in (unseen or ())]

        def accepts(number: int, result: Result) -> bool:
            run = self.runs[number]
            if unseen is None:
                return run.has(key, result[0], in_place=False)
            if number == order[0] and not differ(result, usual[number]):
                return False
            found = self._record(run, {**forced[number], key: result})
            return found is not None and (
                run.same_outputs(found.trace) or any(_has(run, one, found) for one in behind)
            )

        is_half = outer_of(key, self) != key
        for padded in (False, True):
            own = [self._padded(*pair) for pair in zip(self.runs, calls, strict=True)]
            own = own if padded else calls
            if padded and all(a is b for a, b in zip(own, calls, strict=True)):
                return
            rewrites = rewrites_of(calls[0], self._around(key, traced), is_half=is_half)
            for rewrite in chain([AS_PADDED] if padded else [], rewrites):
                results: dict[int, Result] = {}
                for number in order:
                    result = _attempt(rewrite, own[number], known[number])
                    if result is None or not accepts(number, result):
                        break
                    results[number] = result
                if len(results) == len(calls):
                    every = tuple(results[number] for number in range(len(calls)))
                    if any(differ(a, b) for a, b in zip(every, usual, strict=True)):
                        yield _Option(key, rewrite, tuple(usual), every)

    def _around(self, key: Key, traced: Sequence[Traced]) -> Around:
        """Return what is around a call."""
        read = next(leaves(traced[0].calls[key].inputs), None)
        source = next((one for one in self.right_before(key) if self._gives(one, read)), "")
        alike = {
            other[0]: self.runs[0].exact.calls[other].layer
            for other in self.nodes
            if other[1] == key[1] and other != key
        }
        return Around(key[0], source, self.layers.get(source), self._mask_maker(key), alike)

    def _gives(self, path: str, read: Any) -> bool:
        """Tell whether a call gives a tensor of this form of real numbers, as no mask is."""
        given = np.asarray(next(leaves(self.runs[0].exact.trace.layers[path])))
        return np.issubdtype(given.dtype, np.floating) and given.shape == np.shape(read)

    def _mask_maker(self, key: Key) -> str:
        """Return the call that makes the mask of a call, if nothing between them uses it."""
        exact = self.runs[0].exact.trace
        path, maker = outer_of(key, self)[0], ""
        given = [exact.layers.get(one) for one in self.sources.get(path, ())]
        if any(isinstance(one, np.ndarray) and one.dtype == bool for one in given):
            return ""  # it is called with a mask
        for _ in self.nodes:
            before = [
                one
                for one in self.sources.get(path, ())
                if any(mask is not None for mask in leaves(exact.masks.get(one)))
            ]
            if not before or self.layers[before[0]].class_name in USING_MASKS:
                break
            path = maker = before[0]
        return maker

    def _padded(self, run: CheckedRun, call: LayerCall) -> LayerCall:
        """Return a call on the port's own values where the steps that it reads do not count."""
        read = self.sources.get(call.context.path, ())
        masks = [run.valid(key) for key in self.nodes if key[0] in read]

        def padded(x: Any) -> Any:
            for valid in masks if isinstance(x, np.ndarray) and x.ndim > 2 else ():
                if (there := run.as_padded(x, valid)) is not x:
                    return there
            return x

        inputs = map_structure(padded, call.inputs)
        same = all(a is b for a, b in zip(leaves(inputs), leaves(call.inputs), strict=True))
        return call if same else call._replace(inputs=inputs)


def outer_of(key: Key, walk: Walk) -> Key:
    """Return the call of the layer that the user sees: for a half that of the Bidirectional."""
    outer, _, part = key[0].rpartition("/")
    layer = walk.layers.get(outer)
    if layer is not None and layer.class_name == "Bidirectional" and part in layer.parts:
        return outer, "Bidirectional"
    return key


def _has(run: CheckedRun, key: Key, traced: Traced) -> bool:
    return key in traced.results and run.has(key, traced.results[key][0], in_place=False)


def _more(forced: Forced, option: _Option) -> Forced:
    pairs = zip(forced, option.results, strict=True)
    return tuple({**own, option.key: result} for own, result in pairs)


def _sure(walked: Walked) -> int:
    return _sure_of(walked.found)


def _sure_of(found: Sequence[Explained]) -> int:
    return sum(one.confirmed for one in found)


def _attempt(rewrite: Rewrite, call: LayerCall, known: Mapping[Key, Apply]) -> Result | None:
    keys = rewrite.keys or ((call.context.place, call.layer.class_name),)
    try:
        with np.errstate(all="ignore"):
            return call.rewritten({**known, **dict.fromkeys(keys, rewrite.apply)})
    except FAILURES:
        return None


def differ(one: Result, other: Result) -> bool:
    """Tell whether two results of a call differ, in values or in their mask."""
    return not all(
        _are_alike(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(leaves(x), leaves(y), strict=False)
    )


def _are_alike(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    first, second = (np.asarray(x, np.float64) for x in (a, b))
    return same(first, second, None, 1e-9)
