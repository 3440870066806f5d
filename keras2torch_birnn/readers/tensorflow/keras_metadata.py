"""The metadata of layers that Keras writes into a SavedModel: JSON for each tracked object.

Up to tf.keras 2.4 the texts are in ``saved_model.pb``, since 2.5 in ``keras_metadata.pb`` (tf.keras
2.15 ``protobuf/saved_metadata.proto``). TensorFlow's own part of the file, the graph of operations
and the functions, is neither read nor run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keras2torch_birnn import limits
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    UnsupportedLayerError,
    damaged,
    in_place,
    invalid,
    printable,
)
from keras2torch_birnn.readers.config.classes import HOW_TO_WRAP
from keras2torch_birnn.readers.input_files import Window
from keras2torch_birnn.readers.strict_json import parse_object
from keras2torch_birnn.readers.tensorflow.object_graph import (
    ROOT,
    Graph,
    Message,
    as_bytes,
    fields,
    parts,
    read_saved_graph,
)

SAVED_MODEL, KERAS_METADATA = "saved_model.pb", "keras_metadata.pb"
_KERAS = "_tf_keras_"  # begins the identifier of every object that Keras made
_METRIC = "_tf_keras_metric"
# Kinds of values that other containers of Keras 2 write as lists (tf.keras 2.15 json_utils.py).
_LISTS = ("__tuple__", "TensorShape")
# Numbers of fields: SavedModel.meta_graphs, MetaGraphDef.object_graph_def
_META_GRAPH, _OBJECT_GRAPH = 2, 7


@dataclass(frozen=True)
class SavedObjects:
    """The objects of a SavedModel and, by number, the texts of Keras about them."""

    graph: Graph
    metadata: Mapping[int, str]
    _known: dict[int, tuple[str, str]] = field(default_factory=dict)

    def model(self) -> dict[str, Any]:
        """Return what Keras says of the whole model.

        Raises:
            InvalidModelFileError: it says nothing; UnsupportedLayerError: a subclassed model.
        """
        if ROOT not in self.metadata:
            raise InvalidModelFileError(
                "a SavedModel of functions and variables without Keras' layers, as model.export() "
                "and tf.saved_model.save() write it",
                "save the model with model.save() as .keras or .h5, or take its arrays with "
                "k2t.weights",
            )
        text = self.metadata[ROOT]
        parsed = parse_object(text, place="metadata of Keras", needed=["class_name"])
        found: dict[str, Any] = {key: _plain(value) for key, value in parsed.items()}
        config = found.get("config")
        layers = config.get("layers") if isinstance(config, Mapping) else None
        # A Sequential that was built by its first call says that it is no graph.
        graph = found["class_name"] == "Sequential" or found.get("is_graph_network", True)
        if not layers or not graph:
            raise UnsupportedLayerError(
                f"the model is of class {printable(found['class_name'])}, which its own Python "
                "code defines",
                HOW_TO_WRAP,
                place="metadata of Keras",
            )
        return found

    def layers(self, model: int) -> dict[str, tuple[str, str]]:
        """Return the names of a model's layers -> the edge to each (``layer-7``), and its class.

        Raises:
            InvalidModelFileError: two layers of one name.
        """
        found: dict[str, tuple[str, str]] = {}
        for edge, child in self.graph[model].children.items():
            if not is_layer_edge(edge):
                continue
            name, class_name = self._name_and_class(child, edge)
            if name in found:
                raise invalid(f"two layers are called {printable(name)}", edge)
            found[name] = edge, class_name
        return found

    def _name_and_class(self, layer: int, edge: str) -> tuple[str, str]:
        """Return what Keras says of a layer; each text is parsed once."""
        if layer not in self._known:
            if layer not in self.metadata:
                raise damaged("a layer without metadata of Keras", edge)
            found = parse_object(self.metadata[layer], place=edge, needed=["name"])
            self._known[layer] = str(found["name"]), str(found.get("class_name"))
        return self._known[layer]


def is_layer_edge(name: str) -> bool:
    """Tell whether an edge from a model leads to one of its layers by its place in the list."""
    start, _, number = name.partition("-")
    return start == "layer" and number.isdecimal() and number.isascii() and len(number) < 8


def read_saved_objects(saved_model: Window, keras_metadata: Window | None) -> SavedObjects:
    """Read the objects of a SavedModel and what Keras says of them.

    keras_metadata: the file of this name, None if there is none.

    Raises:
        InvalidModelFileError: damaged, or too large.
    """
    part = _find_object_graph(saved_model)
    if part is None:
        raise InvalidModelFileError(
            "a SavedModel without objects, of TensorFlow 1",
            "load it in TensorFlow 1 and save the Keras model as .h5",
            place=SAVED_MODEL,
        )
    if part.size > limits.MAX_OBJECT_GRAPH_BYTES:
        raise invalid(f"objects of more than {limits.MAX_OBJECT_GRAPH_BYTES} bytes", SAVED_MODEL)
    graph = read_saved_graph(memoryview(part.read(part.size)))
    if keras_metadata is not None:
        return SavedObjects(graph, _read_metadata(keras_metadata, len(graph)))
    own = {
        number: one.metadata
        for number, one in enumerate(graph)
        if _is_keras(one.identifier) and one.metadata  # since 2.5 it is in the other file
    }
    return SavedObjects(graph, own)


def _find_object_graph(saved_model: Window) -> Window | None:
    found = [
        part
        for number, meta_graph in parts(saved_model)
        if number == _META_GRAPH
        for inner, part in parts(meta_graph)
        if inner == _OBJECT_GRAPH
    ]
    if len(found) > 1:
        raise invalid("two graphs of objects", SAVED_MODEL)
    return found[0] if found else None


def _is_keras(identifier: str) -> bool:
    return identifier.startswith(_KERAS) and identifier != _METRIC


def _read_metadata(window: Window, count: int) -> dict[int, str]:
    if window.size > limits.MAX_JSON_BYTES * 8:
        raise invalid(f"longer than {limits.MAX_JSON_BYTES * 8} bytes", KERAS_METADATA)
    texts: dict[int, str] = {}
    with in_place(KERAS_METADATA):
        for number, value in fields(memoryview(window.read(window.size))):
            if number != 1:
                continue
            said = Message(as_bytes(value))
            node, text = said.number(2), said.text(5, "")
            if not _is_keras(said.text(4, "")):
                continue
            if node >= count or node in texts:
                raise damaged(f"object {node} is not in the graph, or twice in the metadata")
            texts[node] = text
    return texts


def _plain(value: Any) -> Any:
    """Put lists in the place of tuples and shapes, at any depth."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") in _LISTS and isinstance(value.get("items"), list):
        return _plain(value["items"])
    return {key: _plain(part) for key, part in value.items()}
