"""Known mistakes with ids, and with the masks that Embedding and Masking make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from keras2torch_birnn.porting.changes import (
    Apply,
    Change,
    LayerCall,
    Maker,
    followed_by,
    masks_given,
    reading,
    to_end,
    weighted_one,
    without_mask,
)
from keras2torch_birnn.porting.mask_rules import IDS, PLACES, SPECIAL_IDS, Rule, mask_rules
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import Array, leaves


def made_mask_changes(maker: Maker) -> Iterator[Change]:
    """Yield mistakes with the mask that an Embedding or a Masking makes."""
    if maker.layer.class_name == "Masking" or maker.config.get("mask_zero"):
        words = "its mask is not used: later layers read padding as data"
        yield maker.change("mask missing", words, without_mask)
        if maker.layer.class_name == "Masking":
            yield maker.change("mask missing", words, _nothing)
        words = "padding is taken to be at the end of every row"
        yield maker.change("padding side", words, masks_given(lambda mask, _: to_end(mask)))
        for words, rule in mask_rules(maker.layer):
            yield maker.change("mask rule", words, masks_given(rule))
            if maker.layer.class_name == "Masking":
                yield maker.change("mask rule", words, partial(_zeroed, rule))
    else:
        words = "id 0 is left out as padding, Keras reads it as data (mask_zero=False)"
        yield maker.change("mask rule", words, partial(_zeros_masked, lambda mask: mask))
        yield maker.change("mask rule", words, partial(_zeros_masked, to_end))


def compared_mask_changes(maker: Maker) -> Iterator[Change]:
    """Yield mistakes with a mask (B, T) that an operation gives, and other values of a comparison.

    Keras 3 keeps such operations in a model's file where its layers make masks.
    """
    words = "its mask is not used: later layers read padding as data"
    yield maker.change("mask missing", words, _ruled(lambda mask, _: np.ones_like(mask)))
    words = "padding is taken to be at the end of every row"
    yield maker.change("padding side", words, _ruled(lambda mask, _: to_end(mask)))
    for words, rule in PLACES.items():
        yield maker.change("mask rule", words, _ruled(rule))
    if maker.layer.class_name == "ops.NotEqual":
        for number in range(-1, IDS):
            words = f"its mask leaves out {number}, Keras leaves out another value"
            yield maker.change("mask rule", words, partial(_compared_with, number))


def _ruled(rule: Rule) -> Apply:
    """Make a change of a mask (B, T) that an operation gives."""

    def changed(values: Array) -> Array:
        if values.dtype != bool or values.ndim != 2:
            raise ValueError("it is no mask")
        return rule(values, None)

    return followed_by(changed)


def _compared_with(number: int, call: LayerCall) -> Result:
    x, *_ = leaves(call.inputs)
    output, out_mask = call.run()
    if np.shape(x) != np.shape(output) or not (np.asarray(x) == number).any():
        raise ValueError("no such value is compared")
    return np.asarray(x) != number, out_mask


def _zeros_masked(change: Callable[[Array], Array], call: LayerCall) -> Result:
    """Let an Embedding without a mask make one."""
    output, _ = call.run()
    ids = np.asarray(call.inputs)
    if ids.ndim != 2 or (ids != 0).all():
        raise ValueError("nothing is padded")
    return output, change(ids != 0)


def _nothing(call: LayerCall) -> Result:
    """Do what Masking does where no step is padded."""
    return call.context.number(call.inputs), None


def _zeroed(rule: Rule, call: LayerCall) -> Result:
    """Make a change of the steps that Masking leaves out, which are zero after it."""
    _, out_mask = call.run()
    other = rule(np.asarray(out_mask).astype(bool), call.inputs)
    return call.context.number(call.inputs) * other[..., np.newaxis], other


def id_changes(maker: Maker) -> Iterator[Change]:
    """Yield ids of an Embedding that are one off, and a row of zeros."""
    rows = maker.layer.weights["embeddings"].shape[0]
    for row in dict.fromkeys((*range(min(SPECIAL_IDS, rows)), rows - 1)):
        words = f"row {row} is zero (padding_idx={row}), in Keras it is an ordinary row"
        yield maker.change(
            "padding row", words, weighted_one("embeddings", partial(_without_row, row))
        )
    for words, turn in _TURNED_IDS.items():
        yield maker.change("direction", f"its ids come in reversed order{words}", reading(turn))
    for most in _SHORTENED_TO:
        words = f"rows longer than {most:g} are shortened to that length (max_norm)"
        short = weighted_one("embeddings", partial(_shortened, most))
        yield maker.change("max_norm", f"{words}, which Keras does not do", short)
    for step, name in ((1, "one too high"), (-1, "one too low")):
        for shift in (_shifted, _shifted_within):
            moved = reading(partial(shift, step=step, rows=rows))
            for apply in (
                partial(_of_ids, moved),
                moved,
            ):  # the mask of the right ids, or of the wrong ones
                yield maker.change("ids", f"the ids are {name}", apply)


def _of_ids(change: Apply, call: LayerCall) -> Result:
    """Make a change of the calls that look ids up, with the mask of the right ids."""
    if call.context.call_options.get("reverse"):
        return call.run()
    output, _ = change(call)
    _, out_mask = call.aside().run()
    return output, out_mask


def _without_row(row: int, table: Array) -> Array:
    table = np.array(table)
    table[row] = 0
    return table


def _turned(ids: Array) -> Array:
    return np.flip(ids, -1)


def _turned_where_counted(ids: Array) -> Array:
    """Turn the ids of each row round that are not 0, and leave 0 where it is."""
    turned = np.array(ids)
    for row in turned.reshape(-1, turned.shape[-1]):
        row[row != 0] = row[row != 0][::-1]
    return turned


# What stays as it is -> how ids (B, ..., T) are turned round
_TURNED_IDS: Mapping[str, Callable[[Array], Array]] = {
    "": _turned,
    ", with 0 where it was": _turned_where_counted,
}
_SHORTENED_TO = (1.0, 2.0, 0.5, 3.0, 5.0)


def _shortened(most: float, table: Array) -> Array:
    """Shorten rows as ``nn.Embedding`` does that has a ``max_norm``."""
    table = np.asarray(table, np.float64)
    length = np.linalg.norm(table, axis=-1, keepdims=True)
    shorter: Array = table * np.where(length > most, most / (length + 1e-7), 1)
    return shorter


def _shifted(ids: Array, *, step: int, rows: int) -> Array:
    moved: Array = (np.asarray(ids) + step) % rows
    return moved


def _shifted_within(ids: Array, *, step: int, rows: int) -> Array:
    moved: Array = np.clip(np.asarray(ids) + step, 0, rows - 1)
    return moved
