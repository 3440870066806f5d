"""Lookup tables of TensorFlow: words in a checkpoint, and constants of a SavedModel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorflow_files import bundle_files, entry, masked_crc, message, number, varint, write_files

from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.readers.containers.members import Folder
from keras2torch_birnn.readers.containers.tensorflow_container import (
    TensorFlowContainer,
    open_bundle,
)
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.readers.tensorflow.bundle import TensorBundle
from keras2torch_birnn.readers.tensorflow.layer_weights import Place
from keras2torch_birnn.readers.tensorflow.lookup_tables import read_table_words
from keras2torch_birnn.readers.tensorflow.object_graph import TrackedObject, read_checkpoint_graph

OPENED = ExitStack()  # open until the tests end
WORDS = (b"a", b"bc", "\u00e4".encode())
FUNCTION = "__inference__initializer_7"


@pytest.fixture(scope="module", autouse=True)
def _close() -> Iterator[None]:
    with OPENED:
        yield


@contextmanager
def opened(folder: Path, files: dict[str, bytes]) -> Iterator[TensorBundle]:
    write_files(folder / "x", files)
    with ExitStack() as opening:
        yield open_bundle(Folder(folder, opening), "x")


# ---- in a checkpoint ----------------------------------------------------------------------------


def strings(words: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """The bytes of several strings, and the checksum of their entry."""
    lengths = b"".join(len(word).to_bytes(4, "little") for word in words)
    inner, text = masked_crc(lengths), b"".join(words)
    sizes = b"".join(varint(len(word)) for word in words)
    return sizes + inner + text, masked_crc(lengths + inner + text)


def table_files(
    words: tuple[bytes, ...], ids: Any, *, shape: int | None = None
) -> dict[str, bytes]:
    stored, crc = strings(words)
    files = bundle_files({"ids": np.asarray(ids)})
    data = files[".data-00000-of-00001"]
    count = len(words) if shape is None else shape
    row = entry(7, (count,), 0, len(data), len(stored), crc)
    index = bundle_files({"ids": np.asarray(ids)}, changes={"words": row})[".index"]
    return {".index": index, ".data-00000-of-00001": data + stored}


def words_of(bundle: TensorBundle) -> Any:
    graph = (TrackedObject(table=("words", "ids")),)
    container: Any = SimpleNamespace(bundle=bundle, graph=graph)
    return TensorFlowContainer.words_of(container, Place(0))


def read_text(bundle: TensorBundle) -> object:
    return bundle.text("words", 99)


def read_texts(bundle: TensorBundle) -> object:
    return bundle.texts("words", 99)


def test_the_words_of_a_table_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    with opened(tmp_path, table_files(WORDS, [4, 2, 3])) as bundle:
        assert bundle.texts("words", 99) == list(WORDS)
        assert words_of(bundle) == [WORDS[1], WORDS[2], WORDS[0]]


@pytest.mark.parametrize(
    ("ids", "shape", "read", "words"),
    [
        ([1, 2], None, words_of, "a lookup table with other ids than words"),
        ([1.0, 2.0, 3.0], None, words_of, "a lookup table with other ids than words"),
        ([1, 2, 3], None, read_text, "words: several texts where one is expected"),
        ([1, 2, 3], 2, read_texts, "words: a text of another length"),
        ([1, 2, 3], 1 << 40, read_texts, "words: no text of a size that is allowed"),
    ],
    ids=["other ids", "ids of fractions", "several texts", "lengths", "more texts than bytes"],
)
def test_words_that_do_not_fit_are_refused(
    ids: Any, shape: int | None, read: Callable[..., Any], words: str, tmp_path: Path
) -> None:
    with (
        opened(tmp_path, table_files(WORDS, ids, shape=shape)) as bundle,
        pytest.raises(InvalidModelFileError, match=words),
    ):
        read(bundle)


def test_both_forms_of_a_table_are_known() -> None:
    new = message(2, message(1, "table-keys"), message(3, "t-keys"))
    new += message(2, message(1, "table-values"), message(3, "t-values"))
    old = message(2, message(1, "table"), message(3, "x/.ATTRIBUTES/table"))
    graph = read_checkpoint_graph(memoryview(message(1, new) + message(1, old)))
    assert graph[0].table == ("t-keys", "t-values")
    assert graph[1].table == ("x/.ATTRIBUTES/table-keys", "x/.ATTRIBUTES/table-values")


# ---- in a SavedModel ----------------------------------------------------------------------------


def constant(name: str, *values: bytes, dtype: int = 7) -> bytes:
    tensor = number(1, dtype) + b"".join(message(8, value) for value in values)
    attribute = message(5, message(1, "value"), message(2, message(8, tensor)))
    return message(1, message(1, name), message(2, "Const"), attribute)


def saved(*, bound: bytes = varint(0) + varint(3) + varint(2), function: int = 1) -> bytes:
    """A SavedModel: a table, the function that fills it, and two constants."""
    child = message(1, number(1, function), message(2, "_initialize"))
    objects = message(1, child) + message(1, message(6, message(1, FUNCTION)))
    objects += message(1, message(9, message(1, "Const"))) + message(
        1, message(9, message(1, "Const_1"))
    )
    objects += message(2, message(1, "other"), message(2, message(2, varint(2))))
    objects += message(2, message(1, FUNCTION), message(2, message(2, bound)))
    graph = constant("Const_12") + constant("Const", *WORDS)
    graph += constant("Const_1", dtype=9)
    return message(2, message(2, graph), message(7, objects))


def window(data: bytes, folder: Path) -> Window:
    file = folder / "saved_model.pb"
    file.write_bytes(data)
    return Window(OPENED.enter_context(file.open("rb", buffering=0)), 0, len(data))


def test_the_constants_that_fill_a_table_are_its_words(tmp_path: Path) -> None:
    assert read_table_words(window(saved(), tmp_path), 0) == WORDS


@pytest.mark.parametrize("number_of_object", [1, 2])
def test_what_is_no_table_has_no_words(number_of_object: int, tmp_path: Path) -> None:
    assert read_table_words(window(saved(), tmp_path), number_of_object) == ()


def test_a_table_that_is_filled_otherwise_has_no_words(tmp_path: Path) -> None:
    assert read_table_words(window(saved(bound=b""), tmp_path), 0) == ()
    assert read_table_words(window(message(2, b""), tmp_path), 0) == ()


@pytest.mark.parametrize("data", [saved(bound=varint(77)), saved(function=77)])
def test_an_object_that_is_not_there_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(InvalidModelFileError, match="an object that is not in the graph"):
        read_table_words(window(data, tmp_path), 0)


def test_sizes_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_JSON_BYTES", 5)
    with pytest.raises(InvalidModelFileError, match="a vocabulary of more than 5 bytes"):
        read_table_words(window(saved(), tmp_path), 0)
    monkeypatch.setattr(limits, "MAX_OBJECT_GRAPH_BYTES", 5)
    with pytest.raises(InvalidModelFileError, match="objects of more than 5 bytes"):
        read_table_words(window(saved(), tmp_path), 0)
