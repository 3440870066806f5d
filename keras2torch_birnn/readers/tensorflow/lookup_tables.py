"""The words of a lookup table in a SavedModel: constants with which it is filled when it is loaded.

Keras since 2.6 keeps a vocabulary nowhere else in a SavedModel. A table refers to the function that
fills it, that to constants, and those to operations ``Const`` of the graph. Only these constants
are read; no function is. Source: TensorFlow 2.15 ``core/protobuf/saved_object_graph.proto`` and
``core/framework/{graph,node_def,attr_value,tensor}.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator

from keras2torch_birnn import limits
from keras2torch_birnn.errors import damaged, invalid
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.readers.tensorflow.wire import Message, as_bytes, fields, parts, read_varint

# Numbers of fields
_META_GRAPH, _GRAPH, _OBJECTS = 2, 2, 7  # SavedModel, MetaGraphDef
_OBJECT, _CONCRETE = 1, 2  # SavedObjectGraph
_CHILD, _FUNCTION, _CONSTANT = 1, 6, 9  # SavedObject
_NODE, _ATTRIBUTE = 1, 5  # GraphDef, NodeDef
_TENSOR = 8  # AttrValue
_DTYPE, _STRINGS = 1, 8  # TensorProto
_STRING_DTYPE = 7
_FILLED_BY = "_initialize"


def read_table_words(saved_model: Window, number: int) -> tuple[bytes, ...]:
    """Return the words of the table that is this object, in the order of their ids.

    Empty: the table is not filled from constants of text.

    Raises:
        InvalidModelFileError: damaged, or too large.
    """
    graph = objects = None
    for field, meta_graph in parts(saved_model):
        if field == _META_GRAPH:
            inside = dict(parts(meta_graph))
            graph, objects = inside.get(_GRAPH), inside.get(_OBJECTS)
    if graph is None or objects is None:
        return ()
    if objects.size > limits.MAX_OBJECT_GRAPH_BYTES:
        raise invalid(f"objects of more than {limits.MAX_OBJECT_GRAPH_BYTES} bytes")
    constants = _constants_of(memoryview(objects.read(objects.size)), number)
    for name in constants:
        words = _strings(_find_constant(graph, name))
        if words:
            return words
    return ()


def _constants_of(objects: memoryview, table: int) -> list[bytes]:
    """Return the names of the operations whose values fill a table."""
    nodes = [as_bytes(value) for field, value in fields(objects) if field == _OBJECT]
    filled_by = _child(_node(nodes, table), _FILLED_BY)
    if filled_by is None:
        return []
    name = bytes(Message(_node(nodes, filled_by)).message(_FUNCTION).data(1))
    for field, value in fields(objects):
        if field != _CONCRETE or not name:
            continue
        entry = Message(as_bytes(value))
        if entry.data(1) == name:
            bound = [Message(_node(nodes, number)) for number in _numbers(entry.data(2), 2)]
            return list(filter(None, (bytes(one.message(_CONSTANT).data(1)) for one in bound)))
    return []


def _node(nodes: list[memoryview], number: int) -> memoryview:
    if number >= len(nodes):
        raise damaged("an object that is not in the graph")
    return nodes[number]


def _child(node: memoryview, name: str) -> int | None:
    for field, value in fields(node):
        if field == _CHILD and (edge := Message(as_bytes(value))).data(2) == name.encode():
            return edge.number(1)
    return None


def _numbers(message: memoryview, wanted: int) -> Iterator[int]:
    """Yield the numbers of a repeated field, packed or not."""
    for field, value in fields(message):
        if field != wanted:
            continue
        if isinstance(value, int):
            yield value
            continue
        at = 0
        while at < len(value):
            number, at = read_varint(value, at)
            yield number


def _find_constant(graph: Window, name: bytes) -> memoryview:
    """Return the tensor of a ``Const``, as a message; empty if it is not there."""
    start = bytes([0x0A]) + _varint(len(name)) + name  # field 1, which is written first
    for field, node in parts(graph):
        if field != _NODE or node.head(len(start)) != start:
            continue
        if node.size > limits.MAX_JSON_BYTES:
            raise invalid(f"a vocabulary of more than {limits.MAX_JSON_BYTES} bytes")
        for tag, value in fields(memoryview(node.read(node.size))):
            if tag == _ATTRIBUTE and bytes((pair := Message(as_bytes(value))).data(1)) == b"value":
                return pair.message(2).data(_TENSOR)
    return memoryview(b"")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _strings(tensor: memoryview) -> tuple[bytes, ...]:
    found = list(fields(tensor))
    if not any(field == _DTYPE and value == _STRING_DTYPE for field, value in found):
        return ()
    return tuple(bytes(as_bytes(value)) for field, value in found if field == _STRINGS)
