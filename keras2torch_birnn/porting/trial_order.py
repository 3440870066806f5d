"""The order of trials at a layer that is wrong: single changes first, then two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations

from keras2torch_birnn.porting.changes import Change
from keras2torch_birnn.porting.checked_run import AS_PADDED

# Kinds of mistakes that are likely in company: they are paired first.
_LIKELY = (
    "merge mode",
    "last state",
    "direction",
    "z",
    "reset",
    "batch_first",
    "merge order",
    "mask missing",
    "padding side",
    "activation",
)
# Kinds that let padding be read as data: what the port has there goes on.
_OF_MASKS = (
    "held state",
    "mask missing",
    "mask rule",
    "padding side",
    "reversed padding",
    "other operation",
)
# Kinds of mistakes with padding that one half may make, and the other half another of them.
_IN_A_HALF = ("mask missing", "padding side", "reversed padding", "held state")
# Kinds whose values a right port computes as well: only what follows tells.
_SILENT = ("left out", "other input", "order")
# Kinds that are paired last.
_SELDOM = (
    "mask rule",
    "held state",
    "initial state",
    "final state",
    "ids",
    "left out",
    "other gate",
    "steps",
)


def stages(
    evidence: list[Change],
    own: list[Change],
    before: list[Change],
    behind: Iterable[Change],
    explained: Sequence[Change],
    *,
    shown: Sequence[Change] = (),
    padded: bool = False,
) -> tuple[Iterable[list[Change]], ...]:
    """Return what to try: single changes and what the weights show; then two of them together.

    own: changes at the layer itself; before: at the layers before it; behind: at those that take
    its output; explained: known already; shown: of those before, the ones whose outputs the port
    has. padded: the port has other values than Keras at steps that do not count.
    """
    whole = [evidence] if evidence else []
    parts = [[one] for one in evidence] if len(evidence) > 1 else []
    few = [one for one in own if one.kind != "gate order"]
    likely = [one for one in before if one.kind in _LIKELY and one.kind != "activation"]
    return (
        chain(
            whole,
            parts,
            ([one] for one in (*own, *before)),
            ([AS_PADDED, one] for one in (*own, *before) if padded and one.kind in _OF_MASKS),
        ),
        chain(
            _repeated(own, before, explained),
            _alike(before),
            _of_both_halves(own),
            _with_masked_steps(own),
            ([one, other] for other in behind for one in own if one.kind in _SILENT),
            ([one, other] for one in shown for other in few),
            ([*some, one] for some in (*whole, *parts) for one in (*own, *before)),
        ),
        _pairs(few, likely),
    )


def _repeated(
    own: Sequence[Change], before: Sequence[Change], explained: Sequence[Change]
) -> Iterator[list[Change]]:
    """Yield mistakes made here as before, as a function for several layers makes them.

    One that did not show before, since the port computed the right values on its way, is made in
    both layers now.
    """
    known = {(one.kind, one.words) for one in explained}
    again = [one for one in own if (one.kind, one.words) in known]
    hidden = {(one.kind, one.words): one for one in reversed(before)}
    for one in own:
        if one in again:
            continue
        other = hidden.get((one.kind, one.words))
        if other is not None:
            yield [other, *again, one]
        if again:
            yield [*again, one]


def _alike(before: Sequence[Change]) -> Iterator[list[Change]]:
    """Yield the same mistake made in several of the layers before."""
    by_words: dict[tuple[str, str], list[Change]] = {}
    for one in before:
        by_words.setdefault((one.kind, one.words), []).append(one)
    yield from (some for some in by_words.values() if len({one.layer for one in some}) > 1)


def _with_masked_steps(own: Sequence[Change]) -> Iterator[list[Change]]:
    """Yield a wrong mask together with a wrong output at the steps that it leaves out."""
    masks, outputs = (
        [one for one in own if one.kind in kinds]
        for kinds in (("mask rule", "padding side"), ("masked steps",))
    )
    yield from ([one, other] for one in masks for other in outputs)


def _of_both_halves(own: Sequence[Change]) -> Iterator[list[Change]]:
    """Yield two mistakes with padding, one in each half: one may pack its rows, one may not."""
    forward, backward = (
        [one for one in own if one.kind in _IN_A_HALF and _half_of(one) == name]
        for name in ("forward_layer", "backward_layer")
    )
    yield from ([one, other] for one in forward for other in backward)


def _half_of(change: Change) -> str:
    """Return the half of a Bidirectional that alone is changed, or ""."""
    names = [place.rpartition("/")[2] for place, _ in change.applied]
    return names[0] if len(names) == 1 else ""


def _rate(change: Change) -> tuple[bool, int]:
    """Return a key that sorts changes by how likely they are in company, the likeliest first."""
    halves = [place for place, _ in change.applied if place.endswith("_layer")]
    kind = len(_LIKELY) + (change.kind in _SELDOM)
    return len(halves) == 1, _LIKELY.index(change.kind) if change.kind in _LIKELY else kind


def _pairs(own: Sequence[Change], before: Sequence[Change]) -> Iterator[list[Change]]:
    """Yield two changes at a time, one of them at the layer itself: the likeliest two first."""
    ranked = sorted((*own, *before), key=_rate)
    at_layer = {id(one) for one in own}
    for one, other in sorted(combinations(range(len(ranked)), 2), key=sum):
        some = [ranked[one], ranked[other]]
        if any(id(change) in at_layer for change in some):
            yield some
