"""Write TensorFlow's files without TensorFlow: tables, bundles, object graphs, whole models.

The writer shares no code with the readers, checksums included.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.containers import open_container
from keras2torch_birnn.spec import Array, LayerSpec

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
DTYPES = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    "int64": 9,
    "bool": 10,
    "uint16": 17,
    "float16": 19,
    "uint32": 22,
    "uint64": 23,
}


# ---- CRC-32C, bit by bit -----------------------------------------------------------------------


@cache
def _byte_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def plain_crc32c(data: bytes) -> int:
    """CRC-32C, one byte at a time."""
    state, table = 0xFFFFFFFF, _byte_table()
    for byte in data:
        state = state >> 8 ^ table[(state ^ byte) & 255]
    return state ^ 0xFFFFFFFF


def masked_crc(data: bytes) -> bytes:
    """Return the checksum as TensorFlow stores it."""
    crc = plain_crc32c(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


# ---- protocol buffers --------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """A number, seven bits in a byte."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(tag: int, value: int) -> bytes:
    """A field that holds a number."""
    return varint(tag << 3) + varint(value)


def fixed32(tag: int, data: bytes) -> bytes:
    """A field of four bytes."""
    return varint(tag << 3 | 5) + data


def message(tag: int, *parts: bytes | str) -> bytes:
    """A field that holds bytes, a text, or a message of these parts."""
    data = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    return varint(tag << 3 | 2) + varint(len(data)) + data


# ---- the sorted table --------------------------------------------------------------------------


def common_length(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def block(entries: Sequence[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    """A block with its trailer; keys share what they can."""
    out, last = b"", b""
    for key, value in entries:
        shared = common_length(key, last)
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out += key[shared:] + value
        last = key
    out += bytes(4) + (1).to_bytes(4, "little")  # one restart, at 0
    return out + bytes([kind]) + masked_crc(out + bytes([kind]))


def table(entries: Mapping[bytes, bytes], *, per_block: int = 1000, kind: int = 0) -> bytes:
    """A whole ``.index``."""
    ordered = sorted(entries.items())
    data, handles = b"", []
    for start in range(0, max(1, len(ordered)), per_block):
        some = ordered[start : start + per_block]
        piece = block(some, kind)
        handles.append((some[-1][0] if some else b"", varint(len(data)) + varint(len(piece) - 5)))
        data += piece
    meta, index = block([]), block(handles)
    footer = varint(len(data)) + varint(len(meta) - 5)
    footer += varint(len(data) + len(meta)) + varint(len(index) - 5)
    return (
        data + meta + index + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")
    )


# ---- the bundle --------------------------------------------------------------------------------


def entry(
    dtype: int, shape: Sequence[int], shard: int, offset: int, size: int, crc: bytes
) -> bytes:
    """A BundleEntryProto; zeros are left out, as TensorFlow does."""
    dims = (message(2, number(1, size) if size else b"") for size in shape)
    out = number(1, dtype) + message(2, *dims)
    out += number(3, shard) if shard else b""
    out += number(4, offset) if offset else b""
    return out + (number(5, size) if size else b"") + fixed32(6, crc)


def string_data(text: bytes) -> tuple[bytes, bytes]:
    """The bytes of a single string, and the checksum of its entry."""
    length = len(text).to_bytes(4, "little")
    inner = masked_crc(length)
    return varint(len(text)) + inner + text, masked_crc(length + inner + text)


def bundle_files(
    tensors: Mapping[str, Array | bytes],
    *,
    shards: int = 1,
    header: bytes | None = None,
    changes: Mapping[str, bytes] = {},
    **options: Any,
) -> dict[str, bytes]:
    """The files of a checkpoint, by what comes after the prefix; the tensors go round the shards.

    changes: other entries of the index.
    """
    data = [b""] * shards
    entries: dict[bytes, bytes] = {
        b"": number(1, shards) + message(3, number(1, 1)) if header is None else header
    }
    for count, (key, value) in enumerate(tensors.items()):
        shard = count % shards
        if isinstance(value, bytes):
            stored, crc = string_data(value)
            dtype, shape = 7, ()
        else:
            stored = np.ascontiguousarray(value).tobytes()
            crc, dtype, shape = masked_crc(stored), DTYPES[value.dtype.name], value.shape
        entries[key.encode()] = entry(dtype, shape, shard, len(data[shard]), len(stored), crc)
        data[shard] += stored
    entries |= {key.encode(): value for key, value in changes.items()}
    files = {f".data-{i:05d}-of-{shards:05d}": part for i, part in enumerate(data)}
    return {".index": table(entries, **options), **files}


def write_files(prefix: Path, files: Mapping[str, bytes]) -> Path:
    """Write what ``bundle_files`` returns; the prefix."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for ending, data in files.items():
        prefix.with_name(prefix.name + ending).write_bytes(data)
    return prefix


# ---- tracked objects ---------------------------------------------------------------------------


@dataclass
class Node:
    """A tracked object to be written. ``metadata``: JSON of Keras."""

    children: dict[str, Node] = field(default_factory=dict)
    value: Array | None = None
    full_name: str = ""
    identifier: str = ""
    metadata: dict[str, Any] | None = None

    def walk(self) -> list[Node]:
        """All objects, each once, in the order of their numbers."""
        found, seen = [self], {id(self)}
        for node in found:
            for child in node.children.values():
                if id(child) not in seen:
                    seen.add(id(child))
                    found.append(child)
        return found


def _numbers(root: Node) -> dict[int, int]:
    return {id(node): count for count, node in enumerate(root.walk())}


def _keys(root: Node) -> dict[int, str]:
    """The path of every object: the first that is found."""
    paths, waiting = {id(root): ""}, [root]
    for node in waiting:
        for name, child in node.children.items():
            if id(child) not in paths:
                paths[id(child)] = f"{paths[id(node)]}/{name}".strip("/")
                waiting.append(child)
    return paths


def _children(node: Node, numbers: Mapping[int, int]) -> bytes:
    return b"".join(
        message(1, number(1, numbers[id(child)]) if numbers[id(child)] else b"", message(2, name))
        for name, child in node.children.items()
    )


def checkpoint_tensors(root: Node) -> dict[str, Array | bytes]:
    """Everything that the checkpoint of these objects holds."""
    numbers, keys = _numbers(root), _keys(root)
    tensors: dict[str, Array | bytes] = {}
    graph = b""
    for node in root.walk():
        found = _children(node, numbers)
        if node.value is not None:
            key = keys[id(node)] + SUFFIX
            tensors[key] = node.value
            found += message(
                2, message(1, "VARIABLE_VALUE"), message(2, node.full_name), message(3, key)
            )
        graph += message(1, found)
    return {**tensors, GRAPH_KEY: graph}


def saved_model_files(root: Node, *, in_metadata: bool = True) -> dict[str, bytes]:
    """``saved_model.pb`` and, for Keras since 2.5, ``keras_metadata.pb``."""
    numbers = _numbers(root)
    objects, texts = b"", b""
    for node in root.walk():
        text = "" if node.metadata is None else json.dumps(node.metadata, default=repr)
        told = message(1, node.identifier) + message(2, number(1, 1))
        told += b"" if in_metadata else message(3, text)
        user = message(4, told) if node.identifier else b""
        objects += message(1, _children(node, numbers), user)
        if node.metadata is not None:
            count = numbers[id(node)]
            texts += message(
                1,
                number(2, count) if count else b"",
                message(3, "root"),
                message(4, node.identifier),
                message(5, text),
            )
    graph_def = message(2, b"\xff" * 99)  # never read
    meta = message(1, message(5, "2.4.0")) + graph_def + message(7, objects)
    files = {"saved_model.pb": number(1, 1) + message(2, meta)}
    return files | ({"keras_metadata.pb": texts} if in_metadata else {})


# ---- from a model in any other container -------------------------------------------------------


def model_tree(source: Path, *, numbered_input: bool | None = None) -> tuple[Node, dict[str, Any]]:
    """The objects that TensorFlow would track of a model, and its architecture.

    numbered_input: whether the InputLayer of a Sequential counts among the layers, as in 2.1.
    """
    spec = read_model(source)
    with open_container(source) as container:
        found = container.architecture(None)
    model = {**found.model, "keras_version": found.version, "backend": "tensorflow"}
    root = _model_node(spec.root, numbered_input=numbered_input)
    root.metadata = {**model, "name": "model", "is_graph_network": True}
    root.identifier = "_tf_keras_network"
    return root, model


def _model_node(model: LayerSpec, *, numbered_input: bool | None = None) -> Node:
    node = Node(identifier="_tf_keras_network", metadata={"name": model.name})
    layers = list(model.graph.layers) if model.graph else []
    if model.class_name == "Sequential" and not numbered_input:
        layers = layers[1:]
    weighted = 0
    for count, layer in enumerate(layers):
        child = _layer_node(layer)
        node.children[f"layer-{count}"] = child
        if any(one.value is not None for one in child.walk()):
            node.children[f"layer_with_weights-{weighted}"] = child
            weighted += 1
    return node


_CELLS = ("LSTM", "GRU", "SimpleRNN")


def _layer_node(layer: LayerSpec, way: str = "", half: str = "") -> Node:
    if layer.graph is not None:
        return _model_node(layer)
    way = f"{way}/{half}{layer.name}".strip("/")
    node = Node(identifier="_tf_keras_layer", metadata={"name": layer.name})
    node.children["keras_api"] = Node(children={"layer": node})
    for key, part in layer.parts.items():
        if layer.class_name == "StackedRNNCells":
            cells = node.children.setdefault("cells", Node())
            cells.children[key] = _layer_node(part, way)
        else:
            start = key.removesuffix("layer")  # "forward_", "backward_"
            node.children[key] = _layer_node(part, way, start)
    home = node
    if layer.class_name in _CELLS:
        home = node.children["cell"] = Node()
        way += f"/{layer.class_name.lower()}_cell"
    for name, value in layer.weights.items():
        array = np.asarray(value, np.float32)
        home.children[name] = Node(value=array, full_name=f"{way}/{name}")
    return node


def write_saved_model(
    folder: Path, root: Node, *, in_metadata: bool = True, **options: Any
) -> Path:
    """Write a SavedModel folder."""
    (folder / "variables").mkdir(parents=True)
    for name, data in saved_model_files(root, in_metadata=in_metadata).items():
        (folder / name).write_bytes(data)
    write_files(
        folder / "variables" / "variables", bundle_files(checkpoint_tensors(root), **options)
    )
    return folder


def write_checkpoint(prefix: Path, root: Node, **options: Any) -> Path:
    """Write a checkpoint and the note of the folder's latest one."""
    write_files(prefix, bundle_files(checkpoint_tensors(root), **options))
    note = f'model_checkpoint_path: "{prefix.name}"\nall_model_checkpoint_paths: "old"\n'
    prefix.with_name("checkpoint").write_text(note, encoding="utf-8")
    return prefix


def variables_of(root: Node) -> Iterator[Node]:
    """All objects that hold numbers."""
    return (node for node in root.walk() if node.value is not None)


# ---- TF.js -------------------------------------------------------------------------------------


def write_tfjs(folder: Path, source: Path, **options: Any) -> Path:
    """Write a TF.js model as the Python converter does: weights by the layers' names, sorted.

    options: of ``write_named_tfjs``.
    """
    root, model = model_tree(source)
    named = {node.full_name: np.asarray(node.value) for node in variables_of(root)}
    ordered = {name: named[name] for name in sorted(named)}
    return write_named_tfjs(folder, ordered, model, **options)


def write_named_tfjs(
    folder: Path,
    named: Mapping[str, Array],
    model: Mapping[str, Any],
    *,
    shard_bytes: int = 1 << 30,
    quantized: str = "",
    change: Any = lambda model: None,
) -> Path:
    """Write a TF.js model with these weights, in their order; ``model``: of ``model_tree``."""
    data, weights = b"", []
    for name, value in named.items():
        found: dict[str, Any] = {"name": name, "shape": list(value.shape), "dtype": "float32"}
        if quantized == "float16":
            found["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
            value = value.astype("f2")
        elif quantized:
            least = float(value.min())
            scale = (float(value.max()) - least) / np.iinfo(quantized).max or 1.0
            facts = {"dtype": quantized, "min": least, "scale": scale}
            found["quantization"] = {**facts, "original_dtype": "float32"}
            value = np.rint((value - least) / scale).astype(quantized)
        data += value.tobytes()
        weights.append(found)
    parts = [data[at : at + shard_bytes] for at in range(0, len(data), shard_bytes)]
    paths = [f"group1-shard{i}of{len(parts)}.bin" for i in range(1, len(parts) + 1)]
    folder.mkdir(parents=True)
    for path, part in zip(paths, parts, strict=True):
        (folder / path).write_bytes(part)
    version = model["keras_version"]
    text = {
        "format": "layers-model",
        "generatedBy": f"keras v{version}",
        "convertedBy": "TensorFlow.js Converter v4.22.0",
        "modelTopology": {
            "keras_version": version,
            "backend": "tensorflow",
            "model_config": {k: model[k] for k in ("class_name", "config")},
        },
        "weightsManifest": [{"paths": paths, "weights": weights}],
    }
    change(text)
    (folder / "model.json").write_text(json.dumps(text), encoding="utf-8")
    return folder / "model.json"
