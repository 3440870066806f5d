"""Locate every weight of a model in an HDF5 store, whichever of Keras' two layouts it has."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.errors import WeightMismatchError, invalid
from keras2torch_birnn.limits import MAX_GROUP_DEPTH
from keras2torch_birnn.readers.weights.layouts import KERAS2, Layout
from keras2torch_birnn.readers.weights.legacy import legacy_paths, named_paths, weights_group
from keras2torch_birnn.readers.weights.slots import Key, slots
from keras2torch_birnn.readers.weights.store import Store
from keras2torch_birnn.readers.weights.v3 import is_v3, v3_paths
from keras2torch_birnn.schema.pages import Pages
from keras2torch_birnn.spec import Generation, LayerSpec

WeightPaths = Mapping[Key, Mapping[str, str]]


_LAYOUTS: Mapping[str, Layout] = Pages(
    "keras2torch_birnn.readers.config", "LAYOUTS", {"keras1": "keras1"}
)


def layout_of(generation: Generation) -> Layout:
    """Return the names and layouts that weights have in files of this Keras."""
    return _LAYOUTS.get(generation.name, KERAS2)


def holds_weights(store: Store) -> bool:
    """Tell whether a store holds weights of Keras in any layout."""
    members = store.members("/")
    return weights_group(store) is not None or is_v3(members) or "model_weights" in members


def name_weights(store: Store) -> Mapping[str, str]:
    """Return a name for every weight -> its path: that of Keras, or the path in a v3 store.

    Raises:
        InvalidModelFileError: the lists of names are broken, or groups are nested too deep.
    """
    group = weights_group(store)
    if group is not None:
        return named_paths(store, group)
    found: dict[str, str] = {}
    waiting = [name for name, kind in store.members("/").items() if kind == "group"]
    for path in waiting:
        if path == "optimizer":
            continue
        if path.count("/") > MAX_GROUP_DEPTH:
            raise invalid("groups nested too deep")
        for name, kind in store.members(path).items():
            if kind == "group":
                waiting.append(f"{path}/{name}")
            else:
                found[f"{path}/{name}"] = f"{path}/{name}"
    return found


def locate_weights(
    root: LayerSpec,
    store: Store,
    generation: Generation,
    left_out: frozenset[str] = frozenset(),
) -> WeightPaths:
    """Find the path of every weight in the store: layer -> name of the weight -> path.

    left_out: the places of layers whose weights are passed over.

    Raises:
        WeightMismatchError: the store and the configuration do not fit each other.
    """
    group = weights_group(store)
    if group is not None:
        return legacy_paths(root, store, group, layout_of(generation), left_out)
    if is_v3(store.members("/")):
        return v3_paths(root, store, generation, left_out)
    if any(True for _ in slots(root)):
        raise WeightMismatchError("no weights in the file", "save the whole model again")
    return {}
