"""Protocol buffers: the tracked objects of a SavedModel or a checkpoint, and Keras' metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from keras2torch_birnn.readers.input_files import Window, decode_text, parse_object

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES = 10  # 64 bits, 7 in a byte
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}

Value = int | memoryview


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number at ``at``, of 64 bits without sign, and where the next byte is."""
    value = 0
    for count, byte in enumerate(data[at : at + _VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + count + 1
    raise damaged("a number that does not end")


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Yield the number and the value of every field: an int, or the bytes of what has a length."""
    at, end = 0, len(message)
    while at < end:
        number, wire, at = _read_tag(message, at)
        if wire == _VARINT:
            value, at = read_varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = read_varint(message, at)
        else:
            size = _fixed_size(wire)
        if size > end - at:
            raise _cut_off()
        piece = message[at : at + size]
        yield number, piece if wire == _BYTES else int.from_bytes(piece, "little")
        at += size


def parts(message: Window) -> Iterator[tuple[int, Window]]:
    """Yield the number and the window of every field that has a length; nothing in it is read."""
    at = 0
    while at < message.size:
        head = memoryview(message.head(2 * _VARINT_BYTES, at))
        number, wire, used = _read_tag(head, 0)
        if wire == _BYTES:
            size, used = read_varint(head, used)
            if size > message.size - at - used:
                raise _cut_off()
            yield number, message.part(at + used, size)
            at += used + size
        elif wire == _VARINT:
            at += read_varint(head, used)[1]
        else:
            at += used + _fixed_size(wire)


def as_bytes(value: Value) -> memoryview:
    """Return the value of a field that holds bytes or a message."""
    if isinstance(value, memoryview):
        return value
    raise damaged("a number where bytes are expected")


class Message:
    """The fields of a message by their numbers; one that is absent is 0 or empty.

    Of a field that is there several times the last counts, as everywhere. What is of another type
    than is asked for is an InvalidModelFileError.
    """

    def __init__(self, data: memoryview) -> None:
        """Read the fields."""
        self._fields = dict(fields(data))

    def __contains__(self, field: int) -> bool:
        """Tell whether a field is there."""
        return field in self._fields

    def number(self, field: int, default: int = 0) -> int:
        """Return a number."""
        value = self._fields.get(field, default)
        if isinstance(value, int):
            return value
        raise damaged("bytes where a number is expected")

    def data(self, field: int) -> memoryview:
        """Return bytes."""
        return as_bytes(self._fields.get(field, memoryview(b"")))

    def text(self, field: int, place: str) -> str:
        """Return a text of UTF-8."""
        return decode_text(bytes(self.data(field)), place=place)

    def message(self, field: int) -> Message:
        """Return the message in a field."""
        return Message(self.data(field))


def _read_tag(data: memoryview, at: int) -> tuple[int, int, int]:
    tag, at = read_varint(data, at)
    if tag >> 3 == 0:
        raise damaged("a field without a number")
    return tag >> 3, tag & 7, at


def _fixed_size(wire: int) -> int:
    if wire not in _FIXED_SIZES:
        raise damaged(f"a field of wire type {wire}")
    return _FIXED_SIZES[wire]


def _cut_off() -> InvalidModelFileError:
    return InvalidModelFileError("a field that is longer than the file", "truncated file?")


# ---- tracked objects -----------------------------------------------------------------------------


# The objects that TensorFlow tracked when it saved: a graph with names on its edges.
#
# Source: TensorFlow 2.15 ``core/protobuf/trackable_object_graph.proto`` (in a checkpoint) and
# ``saved_object_graph.proto`` (in a SavedModel).


ROOT = 0
# The key of a checkpoint's own graph in its table, and the attribute that holds a variable's value.
GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "VARIABLE_VALUE"
# Attributes of optimizers, and attributes that lead to no weights of a model.
_OPTIMIZER = frozenset({"iter", "_iterations", "learning_rate", "_learning_rate"})
_NOT_A_MODELS = frozenset({"save_counter", "keras_api", "optimizer", "states"})


@dataclass(frozen=True)
class Variable:
    """A variable: the name that Keras gave it (not unique), and its key in the table."""

    full_name: str
    key: str


@dataclass(frozen=True)
class TrackedObject:
    """One object: what it refers to by name, and its value if it is a variable.

    ``identifier``, ``metadata``: what Keras up to 2.4 said of it in a SavedModel.
    """

    children: Mapping[str, int] = field(default_factory=dict)
    variable: Variable | None = None
    identifier: str = ""
    metadata: str = ""


Graph = tuple[TrackedObject, ...]
_Reader = Callable[[memoryview], TrackedObject]


def read_checkpoint_graph(data: memoryview) -> Graph:
    """Read a TrackableObjectGraph."""
    return _read_graph(data, _read_trackable)


def read_saved_graph(data: memoryview) -> Graph:
    """Read a SavedObjectGraph; functions, constants and resources are passed over."""
    return _read_graph(data, _read_saved_object)


def model_variables(graph: Graph) -> Iterator[Variable]:
    """Yield the variables of models: none of an optimizer, and not TensorFlow's own counter."""
    seen, waiting = {ROOT}, [ROOT]
    while waiting:
        here = graph[waiting.pop()]
        if here.variable is not None:
            yield here.variable
        for name, child in here.children.items():
            own = name in _NOT_A_MODELS or is_optimizer(graph[child])
            if child not in seen and not own:
                seen.add(child)
                waiting.append(child)


def is_optimizer(tracked: TrackedObject) -> bool:
    """Tell an optimizer by what it has, whatever the attribute is called that holds it."""
    return bool(_OPTIMIZER & tracked.children.keys())


def walk(
    graph: Graph, start: int, passed_over: frozenset[str], seen: set[int] | None = None
) -> Iterator[int]:
    """Yield every object that is reached from ``start``, once, without edges of these names.

    seen: objects that are not yielded again; it grows.
    """
    seen = set() if seen is None else seen
    waiting = [] if start in seen else [start]
    seen.add(start)
    while waiting:
        here = waiting.pop()
        yield here
        for name, child in graph[here].children.items():
            if child not in seen and name not in passed_over:
                seen.add(child)
                waiting.append(child)


def _read_graph(data: memoryview, read: _Reader) -> Graph:
    graph: list[TrackedObject] = []
    for number, value in fields(data):
        if number == 1:
            graph.append(read(as_bytes(value)))
        if len(graph) > limits.MAX_TRACKED_OBJECTS:
            raise invalid(f"more than {limits.MAX_TRACKED_OBJECTS} objects", GRAPH_KEY)
    if not graph or any(not 0 <= c < len(graph) for o in graph for c in o.children.values()):
        raise damaged("an object that is not in the graph", GRAPH_KEY)
    return tuple(graph)


def _read_trackable(message: memoryview) -> TrackedObject:
    children: dict[str, int] = {}
    variable = None
    for number, value in fields(message):
        if number == 1:
            _add_child(children, as_bytes(value))
        elif number == 2:
            tensor = Message(as_bytes(value))
            kind, full_name, key = (tensor.text(tag, GRAPH_KEY) for tag in (1, 2, 3))
            if kind == _VALUE:
                variable = Variable(full_name, key)
    return TrackedObject(children, variable)


def _read_saved_object(message: memoryview) -> TrackedObject:
    children: dict[str, int] = {}
    identifier = metadata = ""
    for number, value in fields(message):
        if number == 1:
            _add_child(children, as_bytes(value))
        elif number == 4:
            said = Message(as_bytes(value))
            identifier, metadata = said.text(1, GRAPH_KEY), said.text(3, GRAPH_KEY)
    return TrackedObject(children, None, identifier, metadata)


def _add_child(children: dict[str, int], message: memoryview) -> None:
    edge = Message(message)
    name = edge.text(2, GRAPH_KEY)
    if name in children:
        raise damaged("an object with two children of one name", GRAPH_KEY)
    children[name] = edge.number(1)


# ---- metadata of layers --------------------------------------------------------------------------

# JSON for each tracked object that Keras made, in a SavedModel.
#
# Up to tf.keras 2.4 the texts are in ``saved_model.pb``, since 2.5 in ``keras_metadata.pb``
# (tf.keras 2.15 ``protobuf/saved_metadata.proto``). TensorFlow's own part of the file, the graph of
# operations and the functions, is neither read nor run.


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
        """Return the names of a model's layers -> the edge to each (``layer-7``), and its class."""
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
