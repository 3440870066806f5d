"""Tell an operation of Keras 3 from a layer, by its entry in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The module of operations of any dialect, once they are translated.
TRANSLATED = "k2t operation"
OPERATION_MODULES = (
    TRANSLATED, "keras.src.ops", "keras.ops", "keras.src.activations", "keras.activations",
)  # fmt: skip

# Layers of Keras 3 whose config leaves ``trainable`` out; no operation has their names.
_WITHOUT_TRAINABLE = frozenset(
    "SpatialDropout1D SpatialDropout2D SpatialDropout3D Discretization HashedCrossing "
    "Pipeline".split()
)


def is_operation(entry: Mapping[str, Any]) -> bool:
    """Tell whether an entry is an operation of Keras 3, not a layer of the same name.

    The module says so in a ``.keras`` file. In an ``.h5`` there is none, but nearly every layer of
    Keras 3 has ``trainable`` in its config and no operation has; ``inbound_nodes`` are dicts in
    Keras 3.
    """
    module, nodes, config = entry.get("module"), entry.get("inbound_nodes"), entry.get("config")
    if isinstance(module, str):
        return module.startswith(OPERATION_MODULES)
    dict_nodes = isinstance(nodes, list) and any(isinstance(n, Mapping) for n in nodes)
    bare = isinstance(config, Mapping) and "trainable" not in config
    class_name = entry.get("class_name")
    named = isinstance(class_name, str) and class_name not in _WITHOUT_TRAINABLE
    return dict_nodes and bare and named
