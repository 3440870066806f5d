"""Inputs on which a port is compared: a batch for each kind of padding, or the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np

from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.reference.sample_inputs import (
    ROWS,
    InputFacts,
    draw_inputs,
    input_facts,
)
from keras2torch_birnn.spec import Array, ModelSpec
from keras2torch_birnn.verification.given_inputs import InputData, given_inputs

_STEPS = 7
_KINDS = ("full rows", "rows padded at the end", "rows padded in front", "rows with gaps")
LARGE = "large values"
# Times the usual numbers: where a relu6 is none, a hard_sigmoid is 0 or 1.
_LARGER = 8
# Steps by which the rows are shorter than the longest one, in an order that no sorting gives.
_CUTS = (0, 2, 1, 3, 0)
# Rows of the user's own inputs that are looked at; every trial computes all of them.
_LOOKED_AT = 8


class Batch(NamedTuple):
    """Inputs of one kind, and its name ("" if there is only one kind).

    ``calls``: how often the port is called with them; the last call counts.
    """

    name: str
    arrays: tuple[Array, ...]
    calls: int = 1


def batches(spec: ModelSpec, inputs: InputData | None) -> list[Batch]:
    """Return the batches to compare on, the one without padding first.

    The last one is the first again, in a second call: a state may be kept, or has to be. Gaps are
    tried where a Masking makes the mask: words have none.
    """
    facts = input_facts(spec)
    if inputs is not None:
        arrays = given_inputs(spec, inputs).arrays
        found = [Batch("the inputs given", tuple(x[:_LOOKED_AT] for x in arrays))]
    else:
        found = [*_random_batches(spec, facts)]
        is_real = [one.vocabulary is None and not (one.is_integer or one.is_bool) for one in facts]
        if any(is_real):
            trios = zip(found[0].arrays, facts, is_real, strict=True)
            found.append(
                Batch(LARGE, tuple(_enlarged(x, f) if real else x for x, f, real in trios))
            )
    return [*found, Batch("a second call", found[0].arrays, calls=2)]


def _enlarged(x: Array, fact: InputFacts) -> Array:
    larger: Array = np.where(x == fact.padding, x, x * x.dtype.type(_LARGER))
    return larger


def _random_batches(spec: ModelSpec, facts: Sequence[InputFacts]) -> Iterator[Batch]:
    """Yield a batch for each kind of padding, or one if there is none; full rows have every id."""
    drawn = [draw_inputs(spec, steps=_STEPS, seed=seed) for seed in range(ROWS)]
    if all(one.padding is None for one in facts) or len(drawn[0][0]) != ROWS:
        yield Batch("", tuple(map(_with_all_ids, drawn[0], facts)))
        return
    of_reals = any(one.padding is not None and one.vocabulary is None for one in facts)
    rng = np.random.default_rng(0)
    for kind, name in enumerate(_KINDS if of_reals else _KINDS[:-1]):
        rows = [_rows(drawn, place, kind, facts) for place in range(len(facts))]
        padded = (
            _pad_inside(x, fact, kind, rng) if kind else _with_all_ids(x, fact)
            for x, fact in zip(rows, facts, strict=True)
        )
        yield Batch(name, tuple(padded))


def _rows(
    drawn: Sequence[Sequence[Array]],
    place: int,
    kind: int,
    facts: Sequence[InputFacts],
) -> Array:
    """Put together the rows of one kind of padding (see ``draw_inputs``), of several lengths.

    Two texts of the same words have others in each row; what belongs to the steps of one has not.
    """
    fact = facts[place]
    rows = np.stack([inputs[place][(kind - place) % ROWS] for inputs in drawn])
    if kind == 0 or fact.padding is None or rows.ndim < 2:
        return rows
    counts = (rows != fact.padding).reshape(*rows.shape[:2], -1).any(axis=2)
    texts = [one.vocabulary for one in facts[:place] if one.padding == fact.padding]
    turn = texts.count(fact.vocabulary) if fact.vocabulary is not None else 0
    cuts = islice(cycle(_CUTS), turn, None)
    for row, valid, cut in zip(rows, counts, cuts, strict=False):
        steps = np.flatnonzero(valid)
        fewer = max(0, min(cut, len(steps) - 1))
        row[steps[len(steps) - fewer :] if kind == 1 else steps[:fewer]] = fact.padding
    return rows


def _with_all_ids(x: Array, fact: InputFacts) -> Array:
    """Let every id be among ids that have room for it: each row of a table may be wrong."""
    if fact.vocabulary is None or x.ndim < 2:
        return x
    ids = x.copy()
    flat = ids.reshape(-1)
    known = np.setdiff1d(np.arange(fact.vocabulary), [] if fact.padding is None else fact.padding)
    lacking = np.setdiff1d(known, flat)
    _, once = np.unique(flat, return_index=True)
    again = np.setdiff1d(np.arange(flat.size), once)
    flat[again[: len(lacking)]] = lacking[: len(again)]
    if fact.padding is None and ids.ndim == 2 and len(ids) > 2 and ids.shape[1] > 3:
        ids[1, -2:] = 0  # as if it were padded, for ports that leave it out
    return ids


def _pad_inside(x: Array, fact: InputFacts, kind: int, rng: np.random.Generator) -> Array:
    """Pad also the last axis of ids (B, T, L), and some features of one step of reals (B, T, F).

    Each T that counts keeps some of its L. A step with padding in some of its features counts.
    """
    if fact.padding is None or x.ndim != 3 or x.shape[2] < 2:
        return x
    padded = x.copy()
    size = x.shape[2]
    if fact.vocabulary is not None:
        lengths = rng.integers(1, size + 1, x.shape[:2])[..., np.newaxis]
        places = np.arange(size) if kind == 1 else np.arange(size)[::-1]
        padded[places >= lengths] = fact.padding
        return padded
    for number, row in enumerate(padded):
        steps = np.flatnonzero((row != fact.padding).any(axis=1))
        if len(steps):
            some = slice(0, -1) if number % 2 else slice(1, None)
            row[rng.choice(steps), some] = fact.padding
    return padded


def arguments(port: Callable[..., Any], spec: ModelSpec, arrays: Sequence[Array]) -> list[Array]:
    """Return what the port is called with: the inputs, and lengths or a mask if it asks for them.

    Raises:
        UsageError: it asks for something else.
    """
    known = [
        one
        for one in inspect.signature(port).parameters.values()
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    more = [one.name for one in known[len(arrays) :] if one.default is one.empty]
    given = list(arrays)
    for name in more:
        valid = _valid_steps(spec, arrays)
        if "len" in name.lower():
            given.append(valid.sum(axis=1))
        elif "mask" in name.lower():
            given.append(valid)
        else:
            raise UsageError(
                f"the port's forward asks for {printable(name)}, which Keras' model does not have",
                "give it a default; lengths and mask are filled in",
            )
    return given


def _valid_steps(spec: ModelSpec, arrays: Sequence[Array]) -> Array:
    """Return the steps (B, T) of the first input that are not padding."""
    x, fact = arrays[0], input_facts(spec)[0]
    if fact.padding is None:
        return np.ones(x.shape[:2], bool)
    valid = np.asarray(x != fact.padding)
    return np.asarray(valid.any(axis=-1)) if valid.ndim > 2 else valid
