"""Wrong rules of which steps a mask keeps, as people write them. B batch, T time, F features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from keras2torch_birnn.spec import Array, LayerSpec

# The right mask (B, T) and the layer's input -> the wrong mask
Rule: TypeAlias = Callable[[Array, Any], Array]

# Ids that are tried at most.
IDS = 64
# The first ids mean something in most vocabularies: padding, unknown, begin, end.
SPECIAL_IDS = 4


def mask_rules(layer: LayerSpec) -> Iterator[tuple[str, Rule]]:
    """Yield wrong rules for a layer that makes a mask, each in words, the likeliest first."""
    yield from PLACES.items()
    if layer.class_name == "Embedding":
        rows = min(layer.weights["embeddings"].shape[0], IDS)
        for number in range(1, rows):
            words = f"its mask leaves out id {number}, too; Keras leaves out id 0 alone"
            yield words, partial(_without_id, number=number)
        for number in range(1, rows):
            words = f"its mask leaves out id {number}, Keras leaves out id 0"
            yield words, partial(_other_id, number=number)
        return
    value = float(layer.config["mask_value"])
    kept: dict[str, Callable[[Array], Any]] = {
        f"a step is left out where any feature is {value:g}, Keras needs all of them to be": (
            lambda x: (x != value).all(axis=-1)
        ),
        "only the first feature of a step is looked at, Keras looks at all of them": (
            lambda x: x[..., 0] != value
        ),
        "only the last feature of a step is looked at, Keras looks at all of them": (
            lambda x: x[..., -1] != value
        ),
        **{f"steps are left out where {words}": keep for words, keep in _SUMS.items()},
    }
    for words, keep in kept.items():
        yield words, partial(_kept_where, keep=keep)
    for other in (0.0, -1.0, 1.0):
        if other != value:
            words = f"steps of {other:g} are left out, Keras leaves out steps of {value:g}"
            yield words, partial(_other_value, value=other)


_SUMS: dict[str, Callable[[Array], Any]] = {
    "the sum of the features is not positive": lambda x: x.sum(axis=-1) > 0,
    "the sum of the features is 0": lambda x: x.sum(axis=-1) != 0,
    "the first feature is not positive": lambda x: x[..., 0] > 0,
    "no feature is positive": lambda x: (x > 0).any(axis=-1),
}


def _kept_where(mask: Array, x: Any, *, keep: Callable[[Array], Any]) -> Array:
    return np.asarray(keep(np.asarray(x)))


def _inverted(mask: Array, _: Any) -> Array:
    found: Array = ~mask
    return found


def _ends(mask: Array) -> tuple[Array, Array]:
    """Return the rows that have a valid step, and the last valid step of each."""
    rows = np.flatnonzero(mask.any(axis=1))
    return rows, mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)


def _shorter(mask: Array, _: Any) -> Array:
    found = mask.copy()
    rows, ends = _ends(mask)
    found[rows, ends] = False
    return found


def _longer(mask: Array, _: Any) -> Array:
    found = mask.copy()
    rows, ends = _ends(mask)
    found[rows, np.minimum(ends + 1, mask.shape[1] - 1)] = True
    return found


def _later(mask: Array, _: Any) -> Array:
    found = mask.copy()
    rows = np.flatnonzero(mask.any(axis=1))
    found[rows, mask[rows].argmax(axis=1)] = False
    return found


def _without_id(mask: Array, ids: Any, *, number: int) -> Array:
    found: Array = mask & (np.asarray(ids) != number)
    return found


def _other_id(mask: Array, ids: Any, *, number: int) -> Array:
    found: Array = np.asarray(ids) != number
    return found


def _other_value(mask: Array, x: Any, *, value: float) -> Array:
    found: Array = (np.asarray(x) != value).any(axis=-1)
    return found


# Rules of which steps count alone, whatever the input is
PLACES: Mapping[str, Rule] = {
    "its mask is taken the other way round: True is where Keras pads": _inverted,
    "its mask leaves out the last step that counts (lengths are one too small)": _shorter,
    "its mask keeps one step of padding (lengths are one too large)": _longer,
    "its mask leaves out the first step that counts": _later,
}
