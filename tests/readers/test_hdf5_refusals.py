"""Refusals of the HDF5 reader, one by one."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import MASKED, k2t
from hdf5_files import make_file, open_store, read
from specs import assert_same_weights

from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.containers import opened
from keras2torch_birnn.readers.hdf5 import parser_process


def _of_named_type(file: h5py.File) -> None:
    file["t"] = np.dtype("f4")
    file.create_dataset("x", (2,), dtype=file["t"])


def _low_level(file: h5py.File, kind: Any, space: Any = None, plan: Any = None) -> Any:
    space = space or h5py.h5s.create_simple((2,))
    return h5py.h5d.create(file.id, b"x", kind, space, plan)


def _odd_float(file: h5py.File) -> None:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(100)
    _low_level(file, kind)


def _twice_gzip(file: h5py.File) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((2,))
    plan.set_deflate(1)
    plan.set_deflate(1)
    data = _low_level(file, h5py.h5t.IEEE_F32LE, plan=plan)
    data.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(2, "f4"))


def _chunk(raw: bytes, **options: Any) -> Callable[[h5py.File], None]:
    def fill(file: h5py.File) -> None:
        data = file.create_dataset("x", (2,), "<f4", chunks=(2,), **options)
        data.id.write_direct_chunk((0,), raw)

    return fill


def dataset(*arguments: Any, **options: Any) -> Callable[[h5py.File], object]:
    return lambda file: file.create_dataset("x", *arguments, **options)


def item(value: Any) -> Callable[[h5py.File], object]:
    return lambda file: file.update(x=value)


REFUSALS: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "missing": (lambda f: None, "not in the file"),
    "of a named type": (_of_named_type, "its values are of a named type"),
    "fixed text": (item(np.array([b"ab"])), "it holds text"),
    "array": (dataset((2,), "(3,)f4"), "it holds nested arrays"),
    "odd float": (_odd_float, "it holds floats of an unusual kind"),
    "bits": (lambda f: _low_level(f, h5py.h5t.STD_B8LE), "it holds bit fields"),
    "lzf": (dataset((9,), "f4", compression="lzf"), "filter 32000 (lzf)"),
    "scale": (dataset((9,), "i4", scaleoffset=3), "filter 6 (scaleoffset)"),
    "gzip twice": (_twice_gzip, "filter 1 twice"),
    "nothing stored": (dataset((1 << 40,), "f4"), "no bytes stored, 4398046511104 declared"),
    "a chunk missing": (
        lambda f: f.create_dataset("x", (9,), "f4", chunks=(2,)).__setitem__(0, 1.0),
        "1 of its 5 chunks stored",
    ),
    "bad checksum": (
        _chunk(bytes(8) + b"\1\0\0\0", fletcher32=True),
        "damaged HDF5 structure (",
    ),
    "short chunk": (_chunk(bytes(7)), "a chunk of 7 bytes, expected 8"),
    "long chunk": (_chunk(bytes(9), shuffle=True), "a chunk of 9 bytes, expected 8"),
    "short chunk with checksum": (
        _chunk(bytes(11), shuffle=True, fletcher32=True),
        "a chunk of 11 bytes, expected 12",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses(name: str) -> None:
    make, words = REFUSALS[name]
    data = make_file(make)
    with pytest.raises(InvalidModelFileError, match=rf"^/x: {re.escape(words)}") as caught:
        read(data, "/x")
    assert str(caught.value).count("\n") == 0
    assert caught.value.exit_code == 3


def test_all_refused_arrays_are_listed_and_good_ones_stay_readable() -> None:
    def fill(file: h5py.File) -> None:
        file["good"], file["text"] = 1.0, "a"

    with open_store(make_file(fill)) as store:
        with pytest.raises(InvalidModelFileError) as caught:
            store.arrays(["/text", "/good", "/gone"])
        assert caught.value.lines() == (
            "/text: it holds text; refused",
            "/gone: not in the file; refused",
        )
        assert store.arrays(["/good"])[0].read() == 1.0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/g//x", "not a plain path"),
        ("//x", "not a plain path"),
        ("g/../x", "not a plain path"),
        ("g/./x", "not a plain path"),
        ("g/" * 64 + "x", "a path of 65 groups, more than 64"),
        ("n" * 65537, "a name longer than 65536 bytes"),
        ("a\0b", "a name longer than 65536 bytes"),
        ("x/y", "'x' is a dataset, expected a group"),
        ("soft/x", "'soft' is a soft link"),
    ],
)
def test_only_plain_paths_are_followed(path: str, words: str) -> None:
    def fill(file: h5py.File) -> None:
        file["x"] = 1.0
        file["soft"] = h5py.SoftLink("/")

    with open_store(make_file(fill)) as store:
        with pytest.raises(InvalidModelFileError, match=re.escape(words)):
            store.arrays([path])


def test_two_arrays_never_share_bytes() -> None:
    def fill(file: h5py.File) -> None:
        file["a"] = np.ones(9, "f4")
        file["b"] = file["a"]

    with open_store(make_file(fill)) as store:
        with pytest.raises(
            InvalidModelFileError, match=r"^b: its bytes are also those of a; refused"
        ):
            store.arrays(["a", "b"])


def test_many_small_bombs_count_together() -> None:
    def fill(file: h5py.File) -> None:
        for i in range(6):
            file.create_dataset(
                f"x{i}", data=np.zeros(1 << 22, "f4"), chunks=(1 << 22,), compression=9
            )

    data = make_file(fill)
    with open_store(data) as store:
        with pytest.raises(
            InvalidModelFileError, match=r"^x4: its chunks inflate to 16777216 bytes"
        ):
            store.arrays([f"x{i}" for i in range(5)])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.bytes_(b"\xff\xfe"), "attribute 'a' is not UTF-8 text"),
        (np.array([[b"a"]]), r"attribute 'a' of shape (1, 1)"),
        (np.arange(3), "attribute 'a' holds integers"),
        (np.arange(3.0), "attribute 'a' holds floats"),
        (np.zeros(1, "f4,f4")[0], "attribute 'a' holds compound values"),
        (h5py.Empty("f4"), "attribute 'a' is empty"),
    ],
)
def test_refuses_attributes(value: Any, words: str) -> None:
    with open_store(make_file(lambda f: f.attrs.__setitem__("a", value))) as store:
        with pytest.raises(InvalidModelFileError, match=f"^/: {re.escape(words)}"):
            store.attributes("/", ["a"])


def test_long_attributes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parser_process._LIMITS, "text", 1000)
    monkeypatch.setitem(parser_process._LIMITS, "names", 10)

    def fill(file: h5py.File) -> None:
        file.attrs["text"] = "x" * 1001
        file.attrs["fixed"] = np.bytes_(b"x" * 1001)
        file.attrs["many"] = ["a"] * 11
        file.attrs["pieces0"] = ["a"] * 6
        file.attrs["pieces1"] = ["a"] * 6
        file.attrs["numbers0"] = 1

    refusals = {
        "text": "attribute 'text' is longer than 1000 bytes",
        "fixed": "attribute 'fixed' is longer than 1000 bytes",
        "many": "attribute 'many' of shape (11,); at most 10 names",
        "pieces": "attribute 'pieces' holds more than 10 names",
        "numbers": "attribute 'numbers0' is no list of names",
    }
    with open_store(make_file(fill)) as store:
        for name, words in refusals.items():
            with pytest.raises(InvalidModelFileError, match=re.escape(words)):
                store.attributes("/", [name])


def write_split(group: h5py.Group, name: str, texts: list[bytes]) -> int:
    """``save_attributes_to_hdf5_group`` of Keras 2.2.3 to 3.15; returns the number of pieces."""
    pieces = [np.asarray(texts)]
    while any(piece.nbytes > 64512 for piece in pieces):
        pieces = np.array_split(np.asarray(texts), len(pieces) + 1)
    if len(pieces) == 1:
        group.attrs[name] = texts
        return 1
    for number, piece in enumerate(pieces):
        group.attrs[f"{name}{number}"] = piece
    return len(pieces)


@pytest.mark.parametrize(("length", "pieces"), [(1531, 1), (30011, 2), (64512, 4)])
def test_names_as_long_as_keras_writes_them_are_read(
    length: int, pieces: int, tmp_path: Path
) -> None:
    """Real files of Keras 3.15.1 and tf_keras 2.21 with names of 60,000 bytes were read as well."""

    def lengthened(name: str) -> str:
        return name.ljust(length, "x")

    path = tmp_path / "m.h5"
    path.write_bytes(MASKED.read_bytes())
    with h5py.File(path, "r+") as file:
        text, group = str(file.attrs["model_config"]), file["model_weights"]
        names = [str(name) for name in group.attrs["layer_names"]]
        for name in names:
            text = text.replace(json.dumps(name), json.dumps(lengthened(name)))
            group.move(name, lengthened(name))
        file.attrs["model_config"] = text
        del group.attrs["layer_names"]
        told = [lengthened(name).encode() for name in names]
        assert write_split(group, "layer_names", told) == pieces
    found = read_model(path)
    assert {lengthened(name) for name in names} <= {layer.name for layer in found.root.walk()}
    assert_same_weights(found, read_model(MASKED))
    assert k2t("convert", path, tmp_path / "out.pt").code == 0
    assert k2t("verify", path, tmp_path / "out.pt", "--against", "reference").code == 0


def test_long_names_are_bounded_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parser_process._LIMITS, "text", 1000)

    def fill(file: h5py.File) -> None:
        for letter in "abc":
            file.create_group(f"few/{letter * 300}")
            file.create_group(f"many/{letter * 400}")

    with open_store(make_file(fill)) as store:
        assert len(store.members("few")) == 3
        with pytest.raises(InvalidModelFileError, match="names of members longer than 1000 bytes"):
            store.members("many")


def test_members_refuse_links_types_and_crowds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parser_process._LIMITS, "members", 3)

    def fill(file: h5py.File) -> None:
        file.create_group("links")["soft"] = h5py.SoftLink("/nowhere")
        file.create_group("types")["type"] = np.dtype("f4")
        for i in range(4):
            file.create_group(f"crowd/{i}")
        file["data"] = 1.0

    refusals = {
        "links": "'soft' is a soft link",
        "types": "'type' is neither a group nor a dataset",
        "crowd": "a group with more than 3 members",
        "data": "a dataset, expected a group",
        "gone": "not in the file",
    }
    with open_store(make_file(fill)) as store:
        for group, words in refusals.items():
            with pytest.raises(
                InvalidModelFileError, match=f"^{group}: {re.escape(words)}; refused"
            ):
                store.members(group)
        with pytest.raises(InvalidModelFileError, match="a named type, expected a group or"):
            store.kind("types/type")


def test_a_chunk_table_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parser_process._LIMITS, "chunks", 5)

    def fill(file: h5py.File) -> None:
        file.create_dataset("a", data=np.arange(4), chunks=(1,))
        file.create_dataset("b", data=np.arange(2), chunks=(1,))

    with open_store(make_file(fill)) as store:
        with pytest.raises(InvalidModelFileError, match=r"^b: 2 more chunks, where 1 are left"):
            store.arrays(["a", "b"])


@pytest.mark.parametrize("userblock", [0, 512])
def test_a_truncated_file_says_so(userblock: int) -> None:
    data = make_file(lambda f: f.update(x=np.arange(1000.0)), userblock_size=userblock)
    size = len(data) - userblock
    with pytest.raises(
        InvalidModelFileError,
        match=f"^truncated: {size - 999} bytes here, its header says {size}; r",
    ):
        read(data[:-999], "x")


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes(MASKED.read_bytes())
    changed = pytest.raises(InvalidModelFileError, match=": the file changed while it was read")
    with changed, opened(path) as container:
        arrays = container.store.arrays(["/model_weights/dense/dense/kernel:0"])
        os.truncate(path, path.stat().st_size // 2)
        for array in arrays:
            array.read()


def test_an_array_beyond_the_end_of_the_file_is_refused() -> None:
    data = bytearray(make_file(lambda f: f.update(x=np.arange(1000.0), y=np.ones(3))))
    with h5py.File(io.BytesIO(data)) as file:
        offset = file["x"].id.get_offset()
    place = data.index(offset.to_bytes(8, "little") + (8000).to_bytes(8, "little"))
    data[place : place + 8] = (len(data) - 7999).to_bytes(8, "little")
    with pytest.raises(InvalidModelFileError, match=r"^x: (its bytes end at|damaged HDF5)"):
        read(bytes(data), "x")
