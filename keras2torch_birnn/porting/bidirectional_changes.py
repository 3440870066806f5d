"""Known mistakes in ports of Bidirectional, as changes to try. B batch, T time, H units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from keras2torch_birnn.porting.changes import Apply, Change, Key, configured
from keras2torch_birnn.porting.recurrent_changes import (
    BATCH_FIRST,
    CELLS,
    as_sequences,
    cell_changes,
    first_step,
    largest_step,
    last_step,
    mean_step,
    one_way_changes,
    order_changes,
)
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.reference.recurrent import MERGES
from keras2torch_birnn.spec import Array, LayerSpec, Structure

Both: TypeAlias = Callable[[Array, Array], Array]
Pick: TypeAlias = Callable[[Array], Array]


def _merged(merge: Both) -> Apply:
    """Make a change of what becomes of both halves' outputs, as Keras has them before merging."""

    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        apart = replace(layer, config={**layer.config, "merge_mode": None})
        output, out_mask = equation(apart, inputs, mask, context)
        forward, backward, *states = output
        masks = (out_mask[0], *out_mask[2:])
        merged = merge(forward, backward)
        return ((merged, *states), masks) if states else (merged, masks[0])

    return apply


def _of_sequences(pick: Both, *, swapped: bool = False) -> Apply:
    """Make a change of what is taken from both halves' sequences (B, T, H), in order of time."""

    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        parts = {name: as_sequences(half) for name, half in layer.parts.items()}
        config = {**layer.config, "merge_mode": None}
        x, used = (np.swapaxes(inputs, 0, 1), None) if swapped else (inputs, mask)
        (f, b), _ = equation(replace(layer, parts=parts, config=config), x, used, context)
        if swapped:
            f, b = np.swapaxes(f, 0, 1), np.swapaxes(b, 0, 1)
        sequences = next(iter(layer.parts.values())).config["return_sequences"]
        return pick(f, b), mask if sequences else None

    return apply


def recurrent_changes(path: str, place: str, layer: LayerSpec) -> Iterator[Change]:
    """Yield the known mistakes of a recurrent layer, the likeliest first.

    path: the layer as the user sees it; place: as the reference has it.
    """
    if layer.class_name != "Bidirectional":
        yield from one_way_changes(path, place, layer)
        return
    halves = halves_of(place, layer)
    if len(halves) < len(layer.parts):
        return
    first = next(iter(halves.values()))
    yield from cell_changes(path, halves, first)
    yield from _bidirectional_changes(path, place, layer, halves)
    for key, half in halves.items():
        name = "forward" if key[0].endswith("/forward_layer") else "backward"
        for change in cell_changes(path, {key: half}, half):
            yield replace(change, words=f"{name} half: {change.words}")
    yield from order_changes(path, halves, first)


def halves_of(place: str, layer: LayerSpec) -> Mapping[Key, LayerSpec]:
    """Return the directions of a recurrent layer by key; those that are LSTM, GRU, SimpleRNN."""
    found = {place: layer}
    if layer.class_name == "Bidirectional":
        found = {f"{place}/{part}": half for part, half in layer.parts.items()}
    return {
        (where, half.class_name): half for where, half in found.items() if half.class_name in CELLS
    }


def _bidirectional_changes(
    path: str, place: str, layer: LayerSpec, halves: Mapping[Key, LayerSpec]
) -> Iterator[Change]:
    def here(kind: str, words: str, apply: Apply) -> Change:
        return Change(kind, path, words, {(place, "Bidirectional"): apply})

    mode = layer.config["merge_mode"]
    sequences = next(iter(halves.values())).config["return_sequences"]
    if mode is None:
        return
    usual = MERGES[mode]
    for name in ("concat", "sum", "ave", "mul"):
        if name != mode:
            words = f"merges the halves by {name}, Keras by {mode}"
            yield here("merge mode", words, configured(merge_mode=name))
    yield here(
        "directions exchanged",
        "the weights of the forward and the backward half are exchanged",
        _exchange_halves,
    )
    if mode == "concat":
        yield here(
            "merge order",
            "the backward half comes first in the concatenation",
            _merged(lambda f, b: np.concatenate([b, f], axis=-1)),
        )
    if sequences:
        yield here(
            "direction",
            "the backward half's output is not turned round in time",
            _merged(lambda f, b: usual(f, b[:, ::-1])),
        )
        yield here(
            "direction",
            "the backward half reads the steps forward",
            _forward_both(lambda f, b: usual(f, b[:, ::-1])),
        )
        yield here("batch_first", BATCH_FIRST, _of_sequences(usual, swapped=True))
    else:
        yield here(
            "direction",
            "the backward half reads the steps forward",
            _forward_both(usual),
        )
        for words, (one, other) in _PICKS.items():
            yield here("last state", words, _of_sequences(_pick(usual, one, other)))
        yield here(
            "batch_first",
            BATCH_FIRST,
            _of_sequences(_pick(usual, last_step, last_step), swapped=True),
        )
        yield here(
            "last state",
            "h_n (2, B, H) is viewed as (B, 2 H), which mixes rows of the batch",
            _merged(lambda f, b: np.stack([f, b]).reshape(len(f), -1)),
        )
        if next(iter(halves.values())).class_name == "LSTM":
            yield here(
                "last state", "takes the cell states c where Keras takes h", _cell_states(usual)
            )
    yield here(
        "halves alike",
        "the backward half uses the weights of the forward half",
        _share_half("forward_layer"),
    )
    yield here(
        "halves alike",
        "the forward half uses the weights of the backward half",
        _share_half("backward_layer"),
    )


_PICKS: Mapping[str, tuple[Pick, Pick]] = {
    "takes the last step of both halves (out[:, -1]); the backward half ends at the first": (
        last_step,
        last_step,
    ),
    "takes the first step of both halves (out[:, 0]); the forward half ends at the last": (
        first_step,
        first_step,
    ),
    "takes the first step of the forward half and the last one of the backward half": (
        first_step,
        last_step,
    ),
    "takes the last step of the array for the forward half, also where it is padding": (
        last_step,
        first_step,
    ),
    "takes the mean over the steps where Keras takes the last": (mean_step, mean_step),
    "takes the maximum over the steps where Keras takes the last": (largest_step, largest_step),
}


def _pick(merge: Callable[..., Structure], one: Pick, other: Pick) -> Both:
    return lambda f, b: merge(one(f), other(b))


def _exchange_halves(
    equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    forward, backward = layer.parts["forward_layer"], layer.parts["backward_layer"]
    parts = {
        "forward_layer": replace(forward, weights=backward.weights),
        "backward_layer": replace(backward, weights=forward.weights),
    }
    return equation(replace(layer, parts=parts), inputs, mask, context)


def _share_half(name: str) -> Apply:
    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        weights = layer.parts[name].weights
        parts = {part: replace(half, weights=weights) for part, half in layer.parts.items()}
        return equation(replace(layer, parts=parts), inputs, mask, context)

    return apply


def _forward_both(merge: Callable[..., Structure]) -> Apply:
    """Let the backward half read forward; ``merge`` gets its output turned round by Keras."""

    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        half = layer.parts["backward_layer"]
        half = replace(half, config={**half.config, "go_backwards": False})
        parts = {**layer.parts, "backward_layer": half}
        return _merged(merge)(equation, replace(layer, parts=parts), inputs, mask, context)

    return apply


def _cell_states(merge: Callable[..., Structure]) -> Apply:
    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        parts = {
            name: replace(half, config={**half.config, "return_state": True})
            for name, half in layer.parts.items()
        }
        output, _ = equation(replace(layer, parts=parts), inputs, mask, context)
        return merge(output[-3], output[-1]), None

    return apply
