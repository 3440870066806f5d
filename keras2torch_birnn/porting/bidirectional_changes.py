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

Merge: TypeAlias = Callable[[Array, Array], Structure]
# The layer's merge and both halves' outputs -> the output
Both: TypeAlias = Callable[[Merge, Array, Array], Structure]
Pick: TypeAlias = Callable[[Array], Array]


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
    half = next(iter(halves.values()))
    if mode is None:
        return
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
            _merged(lambda _, f, b: np.concatenate([b, f], axis=-1)),
        )
    table = _SEQUENCES if half.config["return_sequences"] else _LAST_STATES
    for words, (kind, apply) in table.items():
        yield here(kind, words, apply)
    if half.class_name == "LSTM" and not half.config["return_sequences"]:
        yield here("last state", "takes the cell states c where Keras takes h", _cell_states)
    for part, other in (("forward", "backward"), ("backward", "forward")):
        words = f"the {other} half uses the weights of the {part} half"
        yield here("halves alike", words, _share_half(f"{part}_layer"))


# ---- ways to change what becomes of both halves --------------------------------------------------


def _merge_of(layer: LayerSpec) -> Merge:
    """Return the merge of the layer as it is here: another change may have chosen it."""
    return MERGES[layer.config["merge_mode"]]


def _merged(merge: Both) -> Apply:
    """Make a change of what becomes of both halves' outputs, as Keras has them before merging."""

    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        apart = replace(layer, config={**layer.config, "merge_mode": None})
        output, out_mask = equation(apart, inputs, mask, context)
        forward, backward, *states = output
        masks = (out_mask[0], *out_mask[2:])
        merged = merge(_merge_of(layer), forward, backward)
        return ((merged, *states), masks) if states else (merged, masks[0])

    return apply


def _swapped(merge: Both) -> Apply:
    """Let both halves run over the batch; ``merge`` gets their sequences (B, T, H)."""

    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        parts = {name: as_sequences(half) for name, half in layer.parts.items()}
        apart = replace(layer, parts=parts, config={**layer.config, "merge_mode": None})
        (f, b), _ = equation(apart, np.swapaxes(inputs, 0, 1), None, context)
        sequences = next(iter(layer.parts.values())).config["return_sequences"]
        merged = merge(_merge_of(layer), np.swapaxes(f, 0, 1), np.swapaxes(b, 0, 1))
        return merged, mask if sequences else None

    return apply


def _picked(one: Pick | None, other: Pick | None) -> Apply:
    """Make a change of which step of each half is taken; None: the one that Keras takes."""

    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        apart = replace(layer, config={**layer.config, "merge_mode": None})
        last, _ = equation(apart, inputs, mask, context)
        parts = {name: as_sequences(half) for name, half in layer.parts.items()}
        steps, _ = equation(replace(apart, parts=parts), inputs, mask, context)
        forward, backward = (
            own if pick is None else pick(sequence)
            for pick, own, sequence in zip((one, other), last[:2], steps[:2], strict=True)
        )
        return _merge_of(layer)(forward, backward), None

    return apply


def _forward_both(merge: Both) -> Apply:
    """Let the backward half read forward; ``merge`` gets its output turned round by Keras."""

    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        half = layer.parts["backward_layer"]
        half = replace(half, config={**half.config, "go_backwards": False})
        parts = {**layer.parts, "backward_layer": half}
        return _merged(merge)(equation, replace(layer, parts=parts), inputs, mask, context)

    return apply


def _cell_states(
    equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    parts = {
        name: replace(half, config={**half.config, "return_state": True})
        for name, half in layer.parts.items()
    }
    output, _ = equation(replace(layer, parts=parts), inputs, mask, context)
    return _merge_of(layer)(output[-3], output[-1]), None


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


_SEQUENCES: Mapping[str, tuple[str, Apply]] = {
    "the backward half's output is not turned round in time": (
        "direction",
        _merged(lambda merge, f, b: merge(f, b[:, ::-1])),
    ),
    "the backward half reads the steps forward": (
        "direction",
        _forward_both(lambda merge, f, b: merge(f, b[:, ::-1])),
    ),
    BATCH_FIRST: ("batch_first", _swapped(lambda merge, f, b: merge(f, b))),
}
_LAST_STATES: Mapping[str, tuple[str, Apply]] = {
    "the backward half reads the steps forward": (
        "direction",
        _forward_both(lambda merge, f, b: merge(f, b)),
    ),
    "takes the last step of both halves (out[:, -1]); the backward half ends at the first": (
        "last state",
        _picked(last_step, last_step),
    ),
    "takes the first step of both halves (out[:, 0]); the forward half ends at the last": (
        "last state",
        _picked(first_step, first_step),
    ),
    "takes the first step of the forward half and the last one of the backward half": (
        "last state",
        _picked(first_step, last_step),
    ),
    "takes the last step of the array for the forward half, also where it is padding": (
        "last state",
        _picked(last_step, None),
    ),
    "takes the first step of the array for the backward half, also where it is padding": (
        "last state",
        _picked(None, first_step),
    ),
    "takes the ends of the array for both halves, also where they are padding": (
        "last state",
        _picked(last_step, first_step),
    ),
    "takes the mean over the steps where Keras takes the last": (
        "last state",
        _picked(mean_step, mean_step),
    ),
    "takes the maximum over the steps where Keras takes the last": (
        "last state",
        _picked(largest_step, largest_step),
    ),
    "h_n (2, B, H) is viewed as (B, 2 H), which mixes rows of the batch": (
        "last state",
        _merged(lambda _, f, b: np.stack([f, b]).reshape(len(f), -1)),
    ),
    BATCH_FIRST: ("batch_first", _swapped(lambda merge, f, b: merge(f[:, -1], b[:, -1]))),
}
