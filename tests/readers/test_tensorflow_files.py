"""The parts of TensorFlow's files: checksums, protocol buffers, tables, bundles, object graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_files import (
    Node,
    block,
    bundle_files,
    checkpoint_tensors,
    entry,
    fixed32,
    masked_crc,
    message,
    number,
    plain_crc32c,
    saved_model_files,
    table,
    varint,
    write_files,
)

from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.readers.containers.tfjs import JoinedWindows
from keras2torch_birnn.readers.input_files import Folder, Window, file_window
from keras2torch_birnn.readers.tensorflow.bundle import TensorBundle, crc32c, masked, read_table
from keras2torch_birnn.readers.tensorflow.object_graph import (
    GRAPH_KEY,
    Message,
    fields,
    parts,
    read_checkpoint_graph,
    read_saved_graph,
    read_saved_objects,
    read_varint,
)
from keras2torch_birnn.spec import Array

RNG = np.random.default_rng(7)
# What a test has opened.
OPENED = ExitStack()


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    """Close it; that a test has changed a file since is no matter here."""
    yield
    with suppress(InvalidModelFileError):
        OPENED.close()


def window(folder: Path, data: bytes) -> Window:
    """A file of these bytes, opened."""
    path = folder / "data"
    path.write_bytes(data)
    return file_window(OPENED, path)


def open_bundle(prefix: Path, opened: ExitStack = OPENED) -> TensorBundle:
    return TensorBundle(Folder(prefix.parent, opened), prefix.name)


def refuse(words: str) -> Any:
    return pytest.raises(InvalidModelFileError, match=words)


# ---- checksums ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "crc"),
    [  # RFC 3720, appendix B.4
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"", 0),
    ],
)
def test_checksums_are_those_of_the_standard(data: bytes, crc: int) -> None:
    assert crc32c([data]) == crc == plain_crc32c(data)


@given(st.binary(max_size=5000), st.lists(st.integers(0, 5000), max_size=3))
def test_checksums_do_not_depend_on_the_pieces(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(places)]
    assert crc32c(pieces) == plain_crc32c(data)
    assert masked(crc32c([data])).to_bytes(4, "little") == masked_crc(data)


@pytest.mark.parametrize("size", [(1 << 18) - 1, 1 << 18, (1 << 18) + 1, (1 << 20) + 7])
def test_checksums_over_several_blocks(size: int) -> None:
    data = RNG.bytes(size)
    assert crc32c([data]) == plain_crc32c(data)


# ---- protocol buffers --------------------------------------------------------------------------


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=3))
def test_numbers_are_read_back(value: int, rest: bytes) -> None:
    data = varint(value)
    assert read_varint(memoryview(data + rest), 0) == (value, len(data))


def test_fields_of_every_wire_type(tmp_path: Path) -> None:
    data = number(1, 150) + message(2, "ab") + fixed32(3, b"\1\0\0\0") + varint(4 << 3 | 1)
    data += b"\2" + bytes(7)
    found = [(n, bytes(v) if isinstance(v, memoryview) else v) for n, v in fields(memoryview(data))]
    assert found == [(1, 150), (2, b"ab"), (3, 1), (4, 2)]
    assert [(n, w.read(w.size)) for n, w in parts(window(tmp_path, data))] == [(2, b"ab")]


BROKEN_MESSAGES: dict[str, tuple[bytes, str]] = {
    "a number without end": (b"\x08" + b"\xff" * 11, "a number that does not end"),
    "a number cut off": (b"\x08\xff", "a number that does not end"),
    "a group": (b"\x0b", "a field of wire type 3"),
    "field 0": (b"\x00\x01", "a field without a number"),
    "fixed and cut off": (b"\x0d\1\2", "a field that is longer than the file|truncated"),
}


@pytest.mark.parametrize("name", BROKEN_MESSAGES)
def test_broken_messages_are_refused(name: str, tmp_path: Path) -> None:
    data, words = BROKEN_MESSAGES[name]
    with refuse(words):
        list(fields(memoryview(data)))
    if name != "fixed and cut off":
        with refuse(words):
            list(parts(window(tmp_path, data)))


def test_fields_of_another_kind_are_refused() -> None:
    found = Message(memoryview(number(1, 7) + message(2, b"\xff")))
    with refuse("a number where bytes are expected"):
        found.text(1, "x")
    with refuse("bytes where a number is expected"):
        found.number(2)
    with refuse("not UTF-8"):
        found.text(2, "x")


# ---- the table ---------------------------------------------------------------------------------

KEYS = st.dictionaries(st.binary(max_size=9), st.binary(max_size=9), max_size=20)


@settings(max_examples=50)
@given(KEYS, st.integers(1, 7))
def test_a_table_is_read_back(tmp_path_factory: Any, entries: dict[bytes, bytes], n: int) -> None:
    file = window(tmp_path_factory.mktemp("table"), table(entries, per_block=n))
    assert {k: bytes(v) for k, v in read_table(file).items()} == entries


def _footer(data: bytes, at: int, size: int) -> bytes:
    footer = varint(0) + varint(0) + varint(at) + varint(size)
    return data + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")


def _table_of(*blocks: bytes) -> bytes:
    """A table of these data blocks; its index names them in this order."""
    data, handles = b"", []
    for count, piece in enumerate(blocks):
        handles.append((bytes([count]), varint(len(data)) + varint(len(piece) - 5)))
        data += piece
    index = block(handles)
    return _footer(data + index, len(data), len(index) - 5)


def _sealed(content: bytes, kind: int = 0) -> bytes:
    return content + bytes([kind]) + masked_crc(content + bytes([kind]))


def _one(shared: int, more: int, size: int, data: bytes) -> bytes:
    return _sealed(varint(shared) + varint(more) + varint(size) + data + bytes(4) + b"\1\0\0\0")


GOOD = table({b"": b"x", b"a": b"y"})
BROKEN_TABLES: dict[str, tuple[bytes, str]] = {
    "cut off": (GOOD[:-1], "does not end as an index"),
    "too short": (GOOD[-20:], "does not end as an index"),
    "a bit": (bytes([GOOD[0] ^ 1]) + GOOD[1:], "the checksum of a block is wrong"),
    "snappy": (table({b"": b"x"}, kind=1), "compressed with snappy; save the checkpoint again"),
    "another kind": (table({b"": b"x"}, kind=7), "a block of type 7"),
    "beyond the end": (_footer(block([]), 0, 1 << 40), "a block beyond the end"),
    "keys fall": (_table_of(block([(b"b", b"")]), block([(b"a", b"")])), "keys out of order"),
    "a key twice": (_table_of(block([(b"a", b"")]), block([(b"a", b"")])), "keys out of order"),
    "no restarts": (_table_of(_sealed(b"\1")), "a block without an end"),
    "many restarts": (_table_of(_sealed(b"\xff" * 8)), "a block without an end"),
    "shares what is not there": (_table_of(_one(1, 0, 0, b"")), "an entry that is longer"),
    "a long key": (_table_of(_one(0, 99, 0, b"k")), "an entry that is longer"),
    "a long value": (_table_of(_one(0, 1, 99, b"k")), "an entry that is longer"),
    "an endless number": (_table_of(_sealed(b"\xff" * 12 + bytes(4) + b"\1\0\0\0")), "not end"),
}


@pytest.mark.parametrize("name", BROKEN_TABLES)
def test_broken_tables_are_refused(name: str, tmp_path: Path) -> None:
    data, words = BROKEN_TABLES[name]
    with refuse(words):
        read_table(window(tmp_path, data))


def test_a_block_is_read_once(tmp_path: Path) -> None:
    piece = block([(b"a", b"x")])
    handle = varint(0) + varint(len(piece) - 5)
    index = block([(b"a", handle), (b"b", handle)])
    with refuse("blocks out of order"):
        read_table(window(tmp_path, _footer(piece + index, len(piece), len(index) - 5)))


def test_tables_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = window(tmp_path, GOOD)
    monkeypatch.setattr(limits, "MAX_TABLE_KEYS", 1)
    with refuse("too many keys"):
        read_table(file)
    monkeypatch.setattr(limits, "MAX_TABLE_BYTES", len(GOOD) - 1)
    with refuse(f"longer than {len(GOOD) - 1} bytes"):
        read_table(file)


# ---- the bundle --------------------------------------------------------------------------------

TENSORS: dict[str, Array] = {
    "matrix": RNG.normal(size=(3, 5)).astype("f4"),
    "exact": RNG.normal(size=7),
    "scalar": np.array(11, "i8"),
    "none": np.zeros((0, 3), "f4"),
    "half": RNG.normal(size=(2,)).astype("f2"),
    "bools": np.array([True, False, True]),
    **{kind: np.array([[5, 3]], kind) for kind in ("i4", "i2", "i1", "u1", "u2", "u4", "u8")},
}


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("per_block", [1, 1000])
def test_a_bundle_is_read_back(shards: int, per_block: int, tmp_path: Path) -> None:
    files = bundle_files({**TENSORS, "text": b"hello"}, shards=shards, per_block=per_block)
    bundle = open_bundle(write_files(tmp_path / "x", files))
    assert bundle.keys() == sorted(TENSORS)
    arrays = bundle.arrays(list(TENSORS))
    for array, wanted in zip(arrays, TENSORS.values(), strict=True):
        found = array.read()
        assert found.dtype == array.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    assert bundle.text("text", 99) == b"hello"
    assert (bundle.kind("matrix"), bundle.kind("other")) == ("dataset", None)


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    data = np.array([0x3F80, 0xC000], "<u2")
    files = bundle_files({"x": data})
    files[".index"] = bundle_files(
        {"x": data}, changes={"x": entry(14, (2,), 0, 0, 4, masked_crc(data.tobytes()))}
    )[".index"]
    bundle = open_bundle(write_files(tmp_path / "x", files))
    assert bundle.arrays(["x"])[0].read().tolist() == [1.0, -2.0]


CRC = masked_crc(np.zeros(6, "f4").tobytes())
WRONG_ENTRIES: dict[str, tuple[bytes, str]] = {
    "another size": (entry(1, (2, 2), 0, 0, 24, CRC), r"24 bytes for a tensor of shape \(2, 2\)"),
    "a huge shape": (entry(1, (1 << 30, 1 << 30), 0, 0, 24, CRC), "24 bytes for a tensor of"),
    "a negative size": (entry(1, (-1,), 0, 0, 24, CRC), "a tensor of an absurd shape"),
    "a high rank": (entry(1, (1,) * 33, 0, 0, 4, CRC), "a tensor of an absurd shape"),
    "unknown rank": (number(1, 1) + message(2, number(3, 1)), "a tensor of unknown rank"),
    "beyond the shard": (entry(1, (2, 3), 0, 99, 24, CRC), "bytes 99 to 123 are needed"),
    "another shard": (entry(1, (2, 3), 1, 0, 24, CRC), "in shard 1 of 1"),
    "texts": (entry(7, (2, 3), 0, 0, 24, CRC), "a tensor of TensorFlow's dtype 7"),
    "complex": (entry(8, (3,), 0, 0, 24, CRC), "a tensor of TensorFlow's dtype 8"),
    "slices": (
        entry(1, (2, 3), 0, 0, 24, CRC) + message(7, b""),
        "a variable in several slices; save the model without partitioned",
    ),
    "no message": (b"\x0b", "wire type 3"),
}


@pytest.mark.parametrize("name", WRONG_ENTRIES)
def test_wrong_entries_are_refused(name: str, tmp_path: Path) -> None:
    value, words = WRONG_ENTRIES[name]
    files = bundle_files({"x": np.zeros((2, 3), "f4")}, changes={"x": value})
    bundle = open_bundle(write_files(tmp_path / "x", files))
    with pytest.raises(InvalidModelFileError, match=f"^x: .*{words}"):
        bundle.arrays(["x"])


def test_a_tensor_with_a_wrong_checksum_is_refused_when_it_is_read(tmp_path: Path) -> None:
    files = bundle_files({"x": np.zeros((2, 3), "f4"), "text": b"hello"})
    name = ".data-00000-of-00001"
    files[name] = b"\1" + files[name][1:-1] + b"O"
    bundle = open_bundle(write_files(tmp_path / "x", files))
    (array,) = bundle.arrays(["x"])
    for act in (array.read, array.read_stored):
        with refuse("^x: the checksum is wrong; the file is damaged"):
            act()
    with refuse("^text: the checksum is wrong"):
        bundle.text("text", 99)


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    data = np.zeros((2, 3), "f4")
    same = entry(1, (2, 3), 0, 0, 24, CRC)
    files = bundle_files({"a": data, "b": data}, changes={"b": same})
    bundle = open_bundle(write_files(tmp_path / "x", files))
    assert bundle.arrays(["a", "a"])[1].shape == (2, 3)
    with refuse("two tensors in the same bytes"):
        bundle.arrays(["a", "b"])


HEADERS: dict[str, tuple[bytes, str]] = {
    "big-endian": (number(1, 1) + number(2, 1), "a big-endian checkpoint"),
    "newer": (number(1, 1) + message(3, number(1, 9) + number(2, 2)), "a newer format"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_are_not_known_are_refused(name: str, tmp_path: Path) -> None:
    header, words = HEADERS[name]
    prefix = write_files(tmp_path / "x", bundle_files({}, header=header))
    with refuse(words):
        open_bundle(prefix)


def test_a_bundle_must_be_complete(tmp_path: Path) -> None:
    prefix = write_files(tmp_path / "x", bundle_files(TENSORS, shards=2))
    (tmp_path / "x.data-00001-of-00002").unlink()
    with refuse(r"^x\.data-00001-of-00002: cannot be opened"):
        open_bundle(prefix)
    (tmp_path / "x.index").write_bytes(table({b"a": b""}))
    with refuse("an index without header"):
        open_bundle(prefix)


def test_texts_are_one_text(tmp_path: Path) -> None:
    prefix = write_files(tmp_path / "x", bundle_files({"t": b"hello", "n": np.zeros(3)}))
    bundle = open_bundle(prefix)
    with refuse("^t: no text of a size that is allowed"):
        bundle.text("t", 3)
    with refuse("^n: no text of a size that is allowed"):
        bundle.text("n", 99)
    with refuse("^gone: not in the index"):
        bundle.text("gone", 99)


# ---- tracked objects ---------------------------------------------------------------------------


def sample() -> Node:
    """A model with a cycle and an object that is reached in two ways."""
    kernel = Node(value=np.zeros((2, 3), "f4"), full_name="a/kernel")
    layer = Node(children={"kernel": kernel}, identifier="_tf_keras_layer", metadata={"name": "a"})
    root = Node(children={"layer-0": layer, "same": kernel}, identifier="_tf_keras_network")
    layer.children["root"] = root
    root.metadata = {"name": "m"}
    return root


def test_the_objects_of_a_checkpoint() -> None:
    graph = read_checkpoint_graph(memoryview(bytes(checkpoint_tensors(sample())[GRAPH_KEY])))
    assert [dict(one.children) for one in graph] == [
        {"layer-0": 1, "same": 2},
        {"kernel": 2, "root": 0},
        {},
    ]
    assert graph[2].variable is not None
    assert graph[2].variable.full_name == "a/kernel"
    assert graph[2].variable.key == "same/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.mark.parametrize("in_metadata", [True, False])
def test_the_objects_of_a_saved_model(in_metadata: bool, tmp_path: Path) -> None:
    files = saved_model_files(sample(), in_metadata=in_metadata)
    (tmp_path / "folder").mkdir()
    texts = files.get("keras_metadata.pb")
    objects = read_saved_objects(
        window(tmp_path, files["saved_model.pb"]),
        None if texts is None else window(tmp_path / "folder", texts),
    )
    assert dict(objects.metadata) == {0: '{"name": "m"}', 1: '{"name": "a"}'}
    edges = {name: edge for name, (edge, _) in objects.layers(0).items()}
    assert edges == {"a": "layer-0"}


def _object(*parts: bytes) -> bytes:
    return message(1, *parts)


def _child(node: int, name: str) -> bytes:
    return message(1, number(1, node), message(2, name))


BROKEN_GRAPHS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "an object that is not in the graph"),
    "a child that is not there": (_object(_child(1, "a")), "an object that is not in the graph"),
    "a negative child": (_object(_child(-1, "a")), "an object that is not in the graph"),
    "one name twice": (_object(_child(0, "a"), _child(0, "a")), "two children of one name"),
    "no text": (_object(message(1, message(2, b"\xff"))), "not UTF-8"),
}


@pytest.mark.parametrize("read", [read_checkpoint_graph, read_saved_graph])
@pytest.mark.parametrize("name", BROKEN_GRAPHS)
def test_broken_graphs_are_refused(name: str, read: Callable[[memoryview], Any]) -> None:
    data, words = BROKEN_GRAPHS[name]
    with refuse(words):
        read(memoryview(data))


def test_graphs_have_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limits, "MAX_TRACKED_OBJECTS", 1)
    with refuse("more than 1 objects"):
        read_checkpoint_graph(memoryview(_object() + _object()))
    monkeypatch.setattr(limits, "MAX_OBJECT_GRAPH_BYTES", 1)
    saved = saved_model_files(sample())["saved_model.pb"]
    with refuse("objects of more than 1 bytes"):
        read_saved_objects(window(tmp_path, saved), None)


# ---- windows -----------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=9), max_size=4), st.integers(0, 30), st.integers(0, 30))
def test_joined_windows_are_one(
    tmp_path_factory: Any, pieces: list[bytes], at: int, count: int
) -> None:
    folder = tmp_path_factory.mktemp("joined")
    whole = b"".join(pieces)
    file = window(folder, whole)
    ends = [0, *accumulate(map(len, pieces))]
    joined = JoinedWindows(tuple(file.part(a, b - a) for a, b in pairwise(ends)))
    assert joined.size == len(whole)
    buffer = bytearray(count)
    if at + count <= len(whole):
        joined.read_into(memoryview(buffer), at)
        assert buffer == whole[at : at + count]
    elif count:
        with refuse(f"but there are {len(whole)}"):
            joined.read_into(memoryview(buffer), at)
