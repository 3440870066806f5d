"""Merging in Keras 1: the class Merge, and a Sequential whose branches one joins at its start.

Keras 2.0 and 2.1 have both still. Sources: Keras 1.2.2 ``engine/topology.py`` (``Merge``),
``models.py`` (``Sequential.get_config``, ``flattened_layers``: the order in which the layers of
such a model are in its file); Keras 2.0.8 ``legacy/layers.py``, ``legacy/models.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from keras2torch_birnn.errors import invalid
from keras2torch_birnn.limits import MAX_MERGE_DEPTH
from keras2torch_birnn.readers.config.dialects import Pass
from keras2torch_birnn.readers.strict_json import objects_in

_CLASSES: Mapping[str, str] = {
    "sum": "Add",
    "mul": "Multiply",
    "ave": "Average",
    "max": "Maximum",
    "concat": "Concatenate",
    "dot": "Dot",
    "cos": "Merge",
}
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "concat": {"concat_axis": "axis"},
    "dot": {"dot_axes": "axes"},
    "cos": {"mode": "mode", "dot_axes": "axes"},
}


def replace_merges(entry: Any, *, masks_stay: bool) -> Any:
    """Translate Merge layers to classes of later Keras.

    ``masks_stay``: no mask leaves a Sequential that a Merge joins, as in Keras 1.
    """
    if starts_with_merge(entry):
        return build_functional(entry, masks_stay=masks_stay)
    config = entry.get("config") if isinstance(entry, Mapping) else None
    if not isinstance(config, Mapping) or entry.get("class_name") != "Merge":
        return entry
    class_name, new = translate_merge(config)
    return {**entry, "class_name": class_name, "config": new}


def translate_merge(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return class and config of the later layer that replaces a Merge.

    A Merge with a custom function is a Lambda. Later Keras has no equivalent of the cosine.
    """
    mode, kept = config.get("mode"), {"name": config.get("name")}
    if config.get("mode_type", "raw") != "raw":
        return "Lambda", kept
    if not isinstance(mode, str) or mode not in _CLASSES:
        return f"Merge of Keras 1 with mode {mode!r}", kept
    names = _OPTIONS.get(mode, {})
    return _CLASSES[mode], {**kept, **{new: config.get(old) for old, new in names.items()}}


def starts_with_merge(entry: Any) -> bool:
    """Tell whether this is a Sequential that begins with a Merge of branches."""
    if not isinstance(entry, Mapping) or entry.get("class_name") != "Sequential":
        return False
    layers = entry.get("config")
    return isinstance(layers, list) and bool(layers) and _branches(layers[0]) is not None


def _branches(entry: Any) -> Sequence[Any] | None:
    """Return the branches of a Merge at the start of a Sequential, or None."""
    if not isinstance(entry, Mapping) or entry.get("class_name") != "Merge":
        return None
    config = entry.get("config")
    found = config.get("layers") if isinstance(config, Mapping) else None
    return found if isinstance(found, list) and found else None


def build_functional(entry: Mapping[str, Any], *, masks_stay: bool) -> dict[str, Any]:
    """Build the same model as a graph: one input per branch, layers in the file's order.

    Raises:
        InvalidModelFileError: it has not the structure of such a model.
    """
    writer = _Writer(masks_stay=masks_stay)
    end = writer.add_chain(entry["config"], depth=0)
    config = {
        "layers": writer.layers,
        "input_layers": writer.inputs,
        "output_layers": [[*end, 0]],
    }
    return {**entry, "class_name": "Model", "config": config}


def _makes_mask(layers: Any) -> bool:
    """Tell whether a layer here, or inside one, can create a mask."""
    return any(
        one.get("class_name") == "Masking" or one.get("mask_zero") is True
        for one in objects_in(layers)
    )


# A call of a layer: its name, and which of its calls.
_Call = tuple[str, int]


class _Writer:
    """Collector of the layers of all branches.

    Keras writes a branch, model or layer in every place where it is used. Within one file its name
    tells that it is the same: what is equal here is one layer, and on the same tensors one call.
    """

    def __init__(self, *, masks_stay: bool) -> None:
        self.masks_stay = masks_stay
        self.layers: list[dict[str, Any]] = []
        self.inputs: list[list[Any]] = []
        self.names: dict[str, str] = {}
        self.nodes: dict[str, list[list[list[Any]]]] = {}
        self.models: dict[str, _Call] = {}

    def add_chain(self, layers: Any, *, depth: int) -> _Call:
        """Add the layers of a Sequential; returns the call of the last."""
        if depth > MAX_MERGE_DEPTH:
            raise invalid(f"branches of a Merge nested deeper than {MAX_MERGE_DEPTH}")
        branches = _branches(layers[0])
        known = self.names.get(_identify(layers[0]))
        if branches is not None:
            end = self._add(layers[0], [self._branch(one, depth=depth + 1) for one in branches])
        elif known is not None:  # a Sequential begins with the one output that its first layer has
            end = known, 0
        else:
            end = self._add(layers[0], [self._input(layers[0])])
        for layer in layers[1:]:
            end = self._add(layer, [end])
        return end

    def _branch(self, branch: Any, *, depth: int) -> _Call:
        inside = branch.get("config")
        if branch.get("class_name") == "Sequential":
            end = self.add_chain(inside, depth=depth)
            return self._without_mask(end) if self.masks_stay and _makes_mask(inside) else end
        if branch.get("class_name") != "Model":
            return self.add_chain([branch], depth=depth)
        key = _identify(branch)
        if key not in self.models:
            self.models[key] = self._add_model(inside)
        return self.models[key]

    def _add_model(self, inside: Any) -> _Call:
        self.layers += inside["layers"]
        self.inputs += inside["input_layers"]
        name, *numbers = inside["output_layers"][0]
        if numbers != [0, 0]:
            raise invalid("a branch of a Merge has no plain output")
        return str(name), 0

    def _add(self, layer: Any, sources: Sequence[_Call]) -> _Call:
        config, key = layer["config"], _identify(layer)
        if key not in self.names:
            # A Sequential inside loses its name in the file.
            name = f"sequential_in_merge_{len(self.layers)}"
            if isinstance(config, Mapping):
                name = str(config.get("name"))
                config = {key: value for key, value in config.items() if key != "layers"}
            self.names[key], self.nodes[key] = name, []
            self.layers.append(
                {**layer, "name": name, "config": config, "inbound_nodes": self.nodes[key]}
            )
        name, nodes = self.names[key], self.nodes[key]
        node = [[*source, 0] for source in sources]
        if node not in nodes:
            nodes.append(node)
        return name, nodes.index(node)

    def _without_mask(self, end: _Call) -> _Call:
        """Add a layer that drops the mask: none leaves a Sequential that a Merge of Keras 1 joins.

        Identity passes no mask in this generation (Keras 1 itself has no such layer).
        """
        own = {"name": f"{end[0]}_without_mask"}
        return self._add({"class_name": "Identity", "config": own}, [end])

    def _input(self, layer: Any) -> _Call:
        """Add an InputLayer for the first layer of a branch."""
        while isinstance(config := layer["config"], list):
            layer = config[0]
        name = f"{config['name']}_input" if "name" in config else "merge_input"
        own = {"name": name, "batch_input_shape": config["batch_input_shape"]}
        self.layers.append(
            {"class_name": "InputLayer", "name": name, "config": own, "inbound_nodes": []}
        )
        self.inputs.append([name, 0, 0])
        return name, 0


def _identify(layer: Any) -> str:
    """Return a text that is the same for two entries of one layer, and for no others."""
    return json.dumps(layer, sort_keys=True)


PASSES: Mapping[str, tuple[Pass, ...]] = {"keras2": (partial(replace_merges, masks_stay=False),)}
