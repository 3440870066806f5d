"""Where a port differs from Keras first, and which of the known mistakes explains it.

The calls of the model are walked in their order. The first one that the port never computed, though
it computed what that call reads, is where it differs. The rewrites of that layer are computed on
this call alone. One counts if, with it, the port has its outputs or something behind it, on all
inputs. What explains a call is taken for its result, and the walk goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np

from keras2torch_birnn.errors import printable
from keras2torch_birnn.porting.checked_run import CheckedRun, Traced, same
from keras2torch_birnn.porting.layer_call import Apply, Key, LayerCall, Rewrite
from keras2torch_birnn.porting.observing import FAILURES, PortRun
from keras2torch_birnn.porting.rewrites import USING_MASKS, rewrites_of
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import ModelSpec, Structure, leaves

# Results that are known of calls, for each run
Forced: TypeAlias = tuple[Mapping[Key, Result], ...]
# Mistakes of a layer that are tried together with another one, and mistakes told, at most.
_IN_PAIRS, _TOLD = 4, 8
# Stands for what the port returns, where it computed every call.
OUTPUTS: Key = ("the outputs", "")
# Kinds whose value is that of another call: that a port has it tells nothing.
_OF_OTHER_CALLS = ("left out", "half left out")
# Kinds that may be tried far before the call at which they show.
OF_MASKS = ("mask missing", "padding side")


@dataclass(frozen=True)
class Explained:
    """A mistake: the call, what it does, and what it gives there in every run."""

    key: Key
    rewrite: Rewrite
    usual: tuple[Result, ...]
    results: tuple[Result, ...]

    def added_to(self, forced: Forced) -> Forced:
        """Return what is known of calls with this mistake, too."""
        pairs = zip(forced, self.results, strict=True)
        return tuple({**own, self.key: result} for own, result in pairs)

    def varies(self) -> bool:
        """Tell whether what it gives is not the same number everywhere."""
        return any(np.ptp(next(leaves(output))) for output, _ in self.results)


@dataclass(frozen=True)
class Walked:
    """How far a port is explained.

    ``found``: the mistakes, in order; ``forced``: what is known of their calls. ``left``: the call
    at which it differs for an unknown reason, and a mistake that nothing behind it confirms;
    None: at none, all outputs are explained.
    """

    found: tuple[Explained, ...]
    forced: Forced
    left: Key | None = None
    guess: Rewrite | None = None


class Walk:
    """A walk through a model's calls beside several runs of its port."""

    def __init__(self, spec: ModelSpec, runs: Sequence[CheckedRun]):
        self.spec, self.runs, self.exact = spec, runs, runs[0].exact
        self.sources = self.exact.sources
        # The calls that each call is computed from, however many calls before it
        self.before: dict[Key, set[Key]] = {}
        for key, read in self.sources.items():
            inner = [one for one in self.before if f"{one[0]}/".startswith(f"{key[0]}/")]
            near = {*read, *inner}
            self.before[key] = near.union(*(self.before[one] for one in near))

    def explain(self) -> Walked:
        """Walk as far as the port's values are explained."""
        forced: Forced = tuple({} for _ in self.runs)
        found: tuple[Explained, ...] = ()
        while True:
            traced = self.record(forced)
            if self._explained(traced):
                return Walked(found, forced)
            wrong = self.first_wrong(traced, forced)
            guesses: list[Explained] = []
            padding = self._own_padding(wrong, traced) if wrong else ()
            padded = forced
            for one in padding:
                padded = one.added_to(padded)
            more: tuple[Explained, ...] = ()
            if padding and len(found) < _TOLD:  # what is cheap first
                more = self._explain_at(wrong, forced)
                if not more and (more := self._explain_at(wrong, padded)):
                    forced = padded
            if not more and len(found) < _TOLD:
                more = self._explain_one(wrong, forced, guesses)
            if not more and wrong and padding:
                more = self._explain_one(wrong, padded, guesses)
                beside = self.record(padded)
                if self.first_wrong(beside, padded) != wrong:
                    if not self._differ(forced, padded):
                        forced = padded  # nothing that counts reads it
                        continue
                    more = padding[:1]
                    if wrong in beside[0].results and self._computed_fully(padding, traced):
                        more, padded = (self._reading_padding(wrong, traced, beside),), forced
                forced = padded
            if not more:
                if found and found[-1].rewrite.kind in _OF_OTHER_CALLS:
                    wrong, found = found[-1].key, found[:-1]  # what follows would show it
                    guesses, forced = [], tuple(_without(own, wrong) for own in forced)
                likely = (one.rewrite for one in guesses if not self._had_anyway(one, traced))
                guess = next(likely, None) if wrong else None
                left = self._computed_past(wrong, forced) if wrong else OUTPUTS
                return Walked(found, forced, left, guess if left == wrong else None)
            for one in more:
                found, forced = (*found, one), one.added_to(forced)

    def record(self, forced: Forced) -> list[Traced]:
        """Run the reference beside every run, with what is known of calls."""
        return [run.record(self.spec, own) for run, own in zip(self.runs, forced, strict=True)]

    def _explained(self, traced: Sequence[Traced]) -> bool:
        pairs = zip(self.runs, traced, strict=True)
        return all(run.are_same(run.run.outputs, one.trace.outputs) for run, one in pairs)

    def _had_anyway(self, guess: Explained, traced: Sequence[Traced]) -> bool:
        """Tell whether a port has a mistake's value also without it: it is what the call reads.

        Or the port has the right value, too.
        """
        read = leaves(traced[0].calls[guess.key].inputs)
        arrays = [one for one in read if isinstance(one, np.ndarray)]
        handed_on = any(_holds_same(one, guess.results[0][0]) for one in arrays)
        return handed_on or self.seen(guess.key, traced)

    def _differ(self, forced: Forced, other: Forced) -> bool:
        """Tell whether the model's outputs differ, where they count, by what is known of calls."""
        pairs = zip(self.runs, self.record(forced), self.record(other), strict=True)
        return not all(
            run.are_same(one.trace.outputs, two.trace.outputs) for run, one, two in pairs
        )

    # ---- the calls -------------------------------------------------------------------------------

    @cached_property
    def nodes(self) -> list[Key]:
        """The calls that are looked at, in their order: each layer's, before it its two halves."""
        results, paths = self.exact.results, self.exact.trace.layers
        # Path -> class: a wrapper's comes after that of its layer, which has the same path
        outermost = dict(results.keys())
        return [
            key
            for key, (output, _) in results.items()
            if outermost[key[0]] == key[1] != "InputLayer"
            and (key[0] in paths or self.outer(key) != key)
            # not a mask, or ids, which a port may have in other forms
            and np.issubdtype(np.asarray(next(leaves(output))).dtype, np.floating)
        ]

    def outer(self, key: Key) -> Key:
        """Return the call of the layer that the user sees: for a half that of Bidirectional."""
        whole = key[0].rpartition("/")[0], "Bidirectional"
        return whole if whole in self.exact.results else key

    def makes_mask(self, key: Key) -> bool:
        """Tell whether a call's output is a mask alone."""
        return np.asarray(next(leaves(self.exact.results[key][0]))).dtype == bool

    def seen(self, key: Key, traced: Sequence[Traced]) -> bool:
        """Tell whether the port computed a call's output in every run."""
        pairs = zip(self.runs, traced, strict=True)
        return all(key in one.results and run.has(key, one.results[key][0]) for run, one in pairs)

    def seen_in(self, run: PortRun) -> list[Key]:
        """Return the calls whose right values another run of the port has, on the same inputs."""
        other, results = replace(self.runs[0], run=run), self.exact.results
        return [key for key in self.nodes if other.has(key, results[key][0])]

    def first_lost_in(self, run: PortRun) -> str:
        """Return the first layer that another run of the port computes otherwise."""
        seen = self.seen_in(run)
        lost = (key for key in self.seen_in(self.runs[0].run) if key not in seen)
        return next((self.outer(key)[0] for key in lost), "the port")

    def behind(self, key: Key) -> list[Key]:
        """Return the calls that are computed from a call's output."""
        return [one for one in self.nodes if key in self.before[one]]

    def first_wrong(self, traced: Sequence[Traced], forced: Forced) -> Key | None:
        """Return the first call that the port did not compute, nor anything behind it."""
        for key in self.nodes:
            if key in forced[0] or key not in traced[0].results:  # a half of a known call
                continue
            if not self.seen(key, traced) and not self._shown_behind(key, traced):
                return key
        return None

    def _computed_past(self, wrong: Key, forced: Forced) -> Key:
        """Return the first wrong call behind those that the port computed, but did not use."""
        runs = [
            replace(run, run=replace(run.run, seen=(*run.run.seen, *run.run.unused)))
            for run in self.runs
        ]
        return Walk(self.spec, runs).first_wrong(self.record(forced), forced) or wrong

    def _shown_behind(self, key: Key, traced: Sequence[Traced]) -> bool:
        """Tell whether the port has what is computed from a call; of several outputs, from all."""
        if not isinstance(traced[0].results[key][0], tuple):
            return any(self.seen(one, traced) for one in self.behind(key))
        readers = [one for one in self.behind(key) if key in self.sources[one]]
        return bool(readers) and all(self.seen(one, traced) for one in readers)

    # ---- rewriting -------------------------------------------------------------------------------

    def _explain_one(
        self, wrong: Key | None, forced: Forced, guesses: list[Explained], deeper: int = 2
    ) -> tuple[Explained, ...]:
        """Return the mistake at a call, or some of its layer of which none shows alone.

        ``guesses`` takes those whose value the port has, but nothing behind it. ``deeper``: how
        many of them are tried together with another one.
        """
        traced = self.record(forced)
        unseen = {key for key in self.nodes if not self.seen(key, traced)}
        own, before, behind = self._places(wrong)
        stages = (
            *((own, True, ()), (self._givers(wrong), True, OF_MASKS)),
            *(([*before, *behind], True, ()), (own, False, ()), (before, False, ())),
        )
        known: Explained | None = None
        for places, is_seen, kinds in stages:
            best: tuple[int, Explained] | None = None
            for option in self._options(places, traced, forced, kinds, is_seen=is_seen):
                is_other = option.rewrite.kind in _OF_OTHER_CALLS
                if is_other and option.key in behind:
                    continue  # what it gives does not come from the call that is wrong
                shown = self._shows(option, forced, unseen)
                if shown > len(self.nodes):
                    return (option,)
                if not option.varies():
                    continue  # the outputs alone would be evidence
                if is_other:
                    known = option if shown and known is None else known
                elif shown and (best is None or shown > best[0]):
                    best = shown, option
                elif not shown and is_seen and places is own:
                    guesses.append(option)
            if best:
                return (best[1],)
            if deeper < 2:
                break
        for option in guesses[:_IN_PAIRS] if deeper else ():
            more = option.added_to(forced)
            try:
                next_wrong = self.first_wrong(self.record(more), more)
            except FAILURES:  # what follows does not take this shape
                continue
            if rest := self._explain_one(next_wrong, more, [], deeper - 1):
                return (option, *rest)
        return (known,) if known else ()

    def _explain_at(self, wrong: Key | None, forced: Forced) -> tuple[Explained, ...]:
        """Return a mistake of a call's own layer whose value the port has, and one behind it."""
        found = self._explain_one(wrong, forced, [], 0)
        return tuple(one for one in found if one.rewrite.kind not in _OF_OTHER_CALLS)

    def _shows(self, option: Explained, forced: Forced, unseen: set[Key]) -> int:
        """Count the calls behind a mistake that the port has with it; the outputs: all and one.

        None if the port lacks one that it had, or that reads what it has otherwise. A call that
        hands on what it reads, as a dropout does, tells nothing.
        """
        behind = [key for key in self.behind(option.key) if key in unseen]
        kept = [key for key in self.behind(option.key) if key not in unseen]
        reading = [key for key in behind if option.key in self.sources[key]]
        readers = [key for key in reading if key == self.outer(key)]
        if option.key not in unseen and len(readers) > 1:  # changed on the way to all of them
            kept += readers
        outputs = True
        runs = zip(self.runs, option.added_to(forced), option.results, strict=True)
        for run, own, (output, _) in runs:
            try:
                traced = run.record(self.spec, own)
            except FAILURES:
                return 0
            if not all(run.has(key, traced.results[key][0]) for key in kept):
                return 0
            outputs = outputs and run.are_same(run.run.outputs, traced.trace.outputs)
            behind = [
                key
                for key in behind
                if key in traced.results and run.has(key, traced.results[key][0], in_place=False)
                if not _holds_same(traced.results[key][0], output)
            ]
            if not behind and not outputs:
                return 0
        return len(self.nodes) + 1 if outputs else len(behind)

    def _places(self, wrong: Key | None) -> tuple[list[Key], list[Key], list[Key]]:
        """Return the calls at which a mistake may be, if this one is the first that is not seen.

        Those of its own layer, those that it reads, which may be changed before they are read, and
        those behind it.
        """
        if wrong is None:
            ends = set(self.runs[0].output_paths())
            return [key for key in self.nodes if self.outer(key)[0] in ends][::-1], [], []
        whole = self.outer(wrong)
        own = [key for key in self.nodes if self.outer(key) == whole][::-1]
        before = [key for key in self.nodes if key in self.sources[whole]]
        return own, before, [key for key in self.behind(whole) if key not in own]

    def _givers(self, wrong: Key | None) -> list[Key]:
        """Return the calls through which a call gets its masks, that which makes them first."""
        found = [*self.sources[self.outer(wrong)]] if wrong else []
        for key in found:  # grows meanwhile
            is_masked = any(mask is not None for mask in leaves(self.exact.results[key][1]))
            if is_masked and key[1] not in USING_MASKS:
                found += [one for one in self.sources[key] if one not in found]
        return [key for key in self.nodes if key in found]

    def _options(
        self,
        places: Sequence[Key],
        traced: Sequence[Traced],
        forced: Forced,
        kinds: Sequence[str],
        *,
        is_seen: bool,
    ) -> Iterator[Explained]:
        """Yield the rewrites of calls that change them, of these kinds; none: of all.

        is_seen: those whose value the port has.
        """
        for key in places:
            if key not in traced[0].calls:
                continue
            usual = tuple(one.results[key] for one in traced)
            halves = {
                half: (self.exact.calls[half].context.place, half[1])
                for half in forced[0]
                if half != key == self.outer(half)
            }
            is_half = self.outer(key) != key
            alike = {
                one[0]: self.exact.calls[one].layer
                for one in self.nodes
                if one[1] == key[1] and key != one == self.outer(one)
            }
            for rewrite in rewrites_of(traced[0].calls[key], alike, is_half=is_half):
                if kinds and rewrite.kind not in kinds:
                    continue
                results: list[Result] = []
                for run, one, own in zip(self.runs, traced, forced, strict=True):
                    known = {place: own[half] for half, place in halves.items()}
                    result = _attempt(rewrite, one.calls[key], known)
                    if result is None or (is_seen and not run.has(key, result[0], in_place=False)):
                        break
                    results.append(result)
                if len(results) < len(usual) or not any(map(differ, results, usual)):
                    continue
                option = Explained(key, rewrite, usual, tuple(results))
                if option.varies() or rewrite.kind == "axis":  # a softmax of one value is 1
                    yield option

    def _own_padding(self, wrong: Key, traced: Sequence[Traced]) -> tuple[Explained, ...]:
        """Return what a call reads with the port's own values where a mask leaves steps out."""
        found = []
        reader = self.outer(wrong)
        for key in (one for one in self.nodes if one in self.sources[reader]):
            usual = tuple(one.results[key] for one in traced if key in one.results)
            pairs = zip(self.runs, usual, strict=False)
            results = tuple(run.as_padded(key, result) for run, result in pairs)
            if any(map(differ, results, usual)):
                words = "it has other values than Keras at steps that a mask leaves out, and "
                words += f"{printable(reader[0])} reads them"
                rewrite = Rewrite("masked steps", words, LayerCall.run)
                found.append(Explained(key, rewrite, usual, results))
        return tuple(found)

    def _computed_fully(self, padding: Sequence[Explained], traced: Sequence[Traced]) -> bool:
        """Tell whether the port has Keras' values of these calls also where a mask leaves out."""
        return all(
            run.run.has(np.asarray(next(leaves(beside.results[one.key][0])), np.float64))
            for one in padding
            for run, beside in zip(self.runs, traced, strict=True)
        )

    def _reading_padding(
        self, key: Key, traced: Sequence[Traced], padded: Sequence[Traced]
    ) -> Explained:
        """Return the mistake of a call that reads right values, which were changed before it."""
        words = "it reads other values than Keras at steps that a mask leaves out"
        usual, results = (tuple(one.results[key] for one in some) for some in (traced, padded))
        return Explained(key, Rewrite("masked steps", words, LayerCall.run), usual, results)


def _without(forced: Mapping[Key, Result], key: Key) -> Mapping[Key, Result]:
    return {one: result for one, result in forced.items() if one != key}


def _attempt(rewrite: Rewrite, call: LayerCall, known: Mapping[Key, Result]) -> Result | None:
    """Compute a call with a rewrite, and with what is known of layers inside of it."""
    keys = rewrite.keys or ((call.context.place, call.layer.class_name),)
    rewrites: dict[Key, Apply] = {key: partial(_given, own) for key, own in known.items()}
    try:
        with np.errstate(all="ignore"):
            return call.rewritten({**rewrites, **dict.fromkeys(keys, rewrite.apply)})
    except FAILURES:
        return None


def _given(result: Result, _: LayerCall) -> Result:
    return result


def _holds_same(one: Structure, other: Structure) -> bool:
    """Tell whether two outputs hold the same numbers, in whatever order."""
    first, second = (np.sort(np.asarray(next(leaves(x))), axis=None) for x in (one, other))
    return np.array_equal(first, second)


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
