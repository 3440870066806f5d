"""A note on one layer of Keras that is in several places of the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from keras2torch_birnn.errors import printable
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.weights.slots import Key

_PARTS = frozenset(("forward_layer", "backward_layer", "layer", "cell"))
_PLACES_SHOWN = 3


def repeated_note(stored: Mapping[Key, Mapping[str, StoredArray]]) -> Iterator[str]:
    """Yield a note if the file holds the weights of several layers once: they are one in Keras.

    stored: the arrays in the file, by owner. A layer that is called in a nested model and outside
    of it becomes two modules. (Older formats hold its weights twice, as those of two layers.)
    """
    owners: dict[frozenset[str], list[Key]] = {}
    for owner, arrays in stored.items():
        owners.setdefault(frozenset(array.path for array in arrays.values()), []).append(owner)
    places = [
        printable("/".join(name for name in owner if name not in _PARTS))
        for found in owners.values()
        if len(found) > 1
        for owner in found
    ]
    if places:
        more = f" and {len(places) - _PLACES_SHOWN} more" * (len(places) > _PLACES_SHOWN)
        yield (
            f"one layer of Keras in several places: {', '.join(places[:_PLACES_SHOWN])}{more}; "
            "each place is a module here, which trains apart unless you share it (docs/training.md)"
        )
