"""A note on weights that a file matches by order, where their names say another order."""

from __future__ import annotations

from collections.abc import Iterator

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
    heads = _first_parts(names)
    for owner, model in layers_by_owner(root):
        found = [(one.name, heads.get((*owner, one.name), set())) for one in _layers_of(model)]
        called = {name: next(iter(parts)) for name, parts in found if len(parts) == 1}
        if set(called) == set(called.values()) and any(a != b for a, b in called.items()):
            mine, theirs = next((a, b) for a, b in called.items() if a != b)
            yield (
                f"{printable(model.place or model.name)}: the weights of layer {printable(mine)} "
                f"are those of {printable(theirs)} by their names in the file, and the order of "
                "the layers decides: make sure that the configuration is that of this file"
            )
            return


def _layers_of(model: LayerSpec) -> tuple[LayerSpec, ...]:
    return model.graph.layers if model.graph else ()


def _first_parts(names: WeightPaths) -> dict[Key, set[str]]:
    """Return the first parts of the names of all weights in a layer, by the layer's owner."""
    found: dict[Key, set[str]] = {}
    for place, weights in names.items():
        parts = {name.partition("/")[0] for name in weights.values()}
        for count in range(1, len(place) + 1):
            found.setdefault(place[:count], set()).update(parts)
    return found
