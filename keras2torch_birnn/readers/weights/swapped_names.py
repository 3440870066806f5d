"""A note on weights that a file matches by order, where their names say another order."""

from __future__ import annotations

from collections.abc import Container, Iterator

from keras2torch_birnn.errors import printable
from keras2torch_birnn.readers.weights.paths import WeightPaths
from keras2torch_birnn.readers.weights.slots import Key, layers_by_owner
from keras2torch_birnn.spec import LayerSpec


def swapped_note(root: LayerSpec, names: WeightPaths) -> Iterator[str]:
    """Yield a note for the first model whose layers have exchanged their names with the file.

    ``names``: those that Keras gave the weights, by owner. A model that was built again may have
    other names, as ``lstm_3`` for ``lstm``. The same names in another order are those of another
    model, or of one whose code changed: only its owner knows.
    """
    written = _names_below(names)
    for owner, model in layers_by_owner(root):
        layers = model.graph.layers if model.graph else ()
        known = dict.fromkeys(one.name for one in layers)
        found = [
            (one, {_layer_in(name, known) for name in written.get((*owner, one), ())})
            for one in known
        ]
        called = {name: next(iter(parts)) for name, parts in found if len(parts) == 1}
        if set(called) == set(called.values()) and any(a != b for a, b in called.items()):
            mine, theirs = next((a, b) for a, b in called.items() if a != b)
            yield (
                f"{printable(model.place or model.name)}: the weights of layer {printable(mine)} "
                f"are those of {printable(theirs)} by their names in the file, and the order of "
                "the layers decides: make sure that the configuration is that of this file"
            )
            return


def _layer_in(name: str, known: Container[str]) -> str:
    """Return the layer that a weight's name begins with; Keras 3 may put the model's before it."""
    parts = name.split("/")
    return next((part for part in parts if part in known), parts[0])


def _names_below(names: WeightPaths) -> dict[Key, set[str]]:
    """Return the names of all weights in a layer, by the layer's owner."""
    found: dict[Key, set[str]] = {}
    for place, weights in names.items():
        for count in range(1, len(place) + 1):
            found.setdefault(place[:count], set()).update(weights.values())
    return found
