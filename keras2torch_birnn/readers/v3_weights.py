"""Weights of the v3 store (``.keras``, ``.weights.h5``): paths made of class names and counters.

Three numbering rules exist (Keras ``saving/saving_lib.py`` at 2.12/2.13, 2.14/2.15 and 3.x).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from keras2torch_birnn.errors import WeightMismatchError
from keras2torch_birnn.readers.hdf5 import HDF5Store
from keras2torch_birnn.readers.slots import Key, slots
from keras2torch_birnn.schema import CELL_GATES, SCHEMA
from keras2torch_birnn.shapes import expected_weights
from keras2torch_birnn.spec import Generation, LayerSpec

# Name of the group of a model's layers: Keras 2.12 to 2.14 / everything since.
_ROOTS = ("layers", "_layer_checkpoint_dependencies")


def snake_case(class_name: str) -> str:
    """Keras' rule: "TimeDistributed" -> "time_distributed", "PReLU" -> "p_re_lu"."""
    name = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", class_name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def v3_paths(
    root: LayerSpec, store: HDF5Store, generation: Generation
) -> dict[Key, dict[str, str]]:
    """Where the weights of each layer stand: owner -> name -> path in the file.

    Raises:
        WeightMismatchError: the file has no layers at all.
    """
    top = store.members("/")
    layers = next((name for name in _ROOTS if top.get(name) == "group"), None)
    if layers is None:
        raise WeightMismatchError("no weights of layers", "the file is incomplete", place="/")
    skips = generation.version.startswith(("2.12", "2.13"))
    found: dict[Key, dict[str, str]] = {}
    for owner, base, layer in _leaves(root, (), "", layers, skips):
        if layer.class_name in SCHEMA:
            cell = "/cell" if layer.class_name in CELL_GATES else ""
            names = list(expected_weights(layer))
            paths = {name: f"{base}{cell}/vars/{i}" for i, name in enumerate(names)}
        else:  # the user's own layer: whatever it has, by number
            held = store.members(f"{base}/vars") if store.kind(f"{base}/vars") else {}
            paths = {name: f"{base}/vars/{name}" for name in sorted(held, key=_number)}
        if paths:
            found[owner] = paths
    return found


def _number(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (2**31, name)


def _leaves(
    layer: LayerSpec, owner: Key, base: str, group: str, skips: bool
) -> Iterator[tuple[Key, str, LayerSpec]]:
    for key, part in layer.parts.items():
        yield from _leaves(part, (*owner, key), f"{base}/{key}", group, skips)
    if layer.graph is not None:
        for inner, name in numbered(layer, skips=skips).items():
            yield from _leaves(
                layer.graph.layer(inner), (*owner, inner), f"{base}/{group}/{name}", group, skips
            )
    elif not layer.parts:
        yield owner, base, layer


def numbered(model: LayerSpec, *, skips: bool) -> Mapping[str, str]:
    """Layer name -> group name: the class in snake case, counted per class.

    ``skips``: Keras 2.12 and 2.13 pass over a layer with weights twice, and count both times.
    """
    counts: Counter[str] = Counter()
    out: dict[str, str] = {}
    layers = model.graph.layers if model.graph else ()
    for layer in layers:
        # A Sequential's list has no InputLayer.
        if layer.class_name == "InputLayer" and model.class_name == "Sequential":
            continue
        name = snake_case(layer.class_name)
        out[layer.name] = f"{name}_{counts[name]}" if counts[name] else name
        counts[name] += 2 if skips and any(True for _ in slots(layer)) else 1
    return out


def is_v3(members: Mapping[str, str]) -> bool:
    """Whether these are the groups of a v3 store."""
    return any(name in members for name in _ROOTS)
