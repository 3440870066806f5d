"""A note on one layer of Keras that is in several places of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from keras2torch_birnn.errors import printable
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.weights.slots import Key
from keras2torch_birnn.spec import LayerSpec

Arrays = Mapping[str, StoredArray]
_PARTS = frozenset(("forward_layer", "backward_layer", "layer", "cell"))
_PLACES_SHOWN = 3


def repeated_note(layers: Mapping[Key, LayerSpec], stored: Mapping[Key, Arrays]) -> Iterator[str]:
    """Yield a note if two layers of one name and class are, or seem to be, one layer in Keras.

    layers, stored: every layer with weights, and its arrays in the file, by owner. A layer that is
    called in a nested model and outside of it is in the file twice, and becomes two modules. Newer
    formats hold its weights once, which is proof; others twice, as those of two equal layers.
    """
    found: dict[tuple[str, str], list[Key]] = {}
    for owner, layer in layers.items():
        found.setdefault((layer.class_name, layer.name), []).append(owner)
    sure: dict[str, None] = {}
    likely: dict[str, None] = {}
    for first, *others in found.values():
        for other in others:
            if _paths(stored[first]) == _paths(stored[other]):
                sure |= dict.fromkeys((_shown(first), _shown(other)))
            elif _have_same_weights(layers[first].weights, layers[other].weights):
                likely |= dict.fromkeys((_shown(first), _shown(other)))
    if sure:
        yield f"one layer of Keras in several places: {_joined(sure)}; {_ADVICE}"
    if likely:
        yield (
            f"the same name and weights in several places: {_joined(likely)}; if that is one layer "
            f"in Keras: {_ADVICE}"
        )


_ADVICE = "each place is a module here, which trains apart unless you share it (docs/training.md)"


def _paths(arrays: Arrays) -> set[str]:
    return {array.path for array in arrays.values()}


def _shown(owner: Key) -> str:
    """Return a layer's place without the parts of wrappers, which are no layers to the user."""
    names = [name for name in owner if name not in _PARTS]
    return printable("/".join(names))


def _joined(places: Iterable[str]) -> str:
    names = list(places)
    more = len(names) - _PLACES_SHOWN
    shown = ", ".join(names[:_PLACES_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def _have_same_weights(weights: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether all values are the same, and not all alike as fresh ones can be."""
    shapes = [{name: array.shape for name, array in each.items()} for each in (weights, other)]
    if shapes[0] != shapes[1] or not any(
        (array != array.flat[:1]).any() for array in weights.values()
    ):
        return False
    return all(np.array_equal(array, other[name]) for name, array in weights.items())
