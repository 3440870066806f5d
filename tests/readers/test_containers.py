"""Recognition of files by content, two files in one, windows of files, and strict JSON."""

from __future__ import annotations

import json
import os
import socket
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampling import examples
from specs import FIXTURES, describe

from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError, UnsupportedLayerError
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.containers import open_container
from keras2torch_birnn.readers.containers.zip_archive import WindowFile
from keras2torch_birnn.readers.input_files import Window, decode_text, parse_json, parse_object


def h5(path: Path, **options: Any) -> Path:
    with h5py.File(path, "w", **options) as file:
        file.attrs["model_config"] = "{}"
        file["x"] = np.arange(99.0)
    return path


def refused(path: Path, words: str) -> None:
    with pytest.raises(InvalidModelFileError, match=words) as caught:
        open_container(path).close()
    assert "\n" not in str(caught.value)


# --- By content ---


@pytest.mark.parametrize("name", ["m.h5", "m.keras", "m", "m.json", "ä\udcff.h5", "-"])
@pytest.mark.parametrize("userblock", [0, 512, 4096])
def test_hdf5_is_known_by_its_content(name: str, userblock: int, tmp_path: Path) -> None:
    path = h5(tmp_path / "made", userblock_size=userblock).rename(tmp_path / name)
    with open_container(path) as container:
        assert container.kind == "hdf5"
        assert container.store.attributes("/", ["model_config"]) == {"model_config": "{}"}
        (array,) = container.store.arrays(["/x"])
        assert array.read().tolist() == np.arange(99.0).tolist()


@pytest.mark.parametrize(
    ("fixture", "name", "noted"),
    [
        ("keras-3.15.1/bi_lstm_concat_last.keras", "m.h5", True),
        ("keras-3.15.1/bi_lstm_concat_last.keras", "m.keras", False),
        ("keras-3.15.1/bi_lstm_concat_seq.h5", "m.keras", False),
    ],
)
def test_a_keras_archive_that_is_named_h5_is_read_and_noted(
    fixture: str, name: str, noted: bool, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes((FIXTURES / fixture).read_bytes())
    assert ("the file is a .keras archive by its content" in read_model(path).notes) is noted


# --- Two files in one ---

KERAS = FIXTURES / "keras-3.15.1" / "bi_lstm_concat_last.keras"
TWO_IN_ONE = "an HDF5 file and a zip archive in one; programs differ in which they read; save"


def with_zip_behind(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "a") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("userblock", [0, 512, 4096])
def test_an_hdf5_file_with_a_zip_behind_it_is_refused(userblock: int, tmp_path: Path) -> None:
    path = with_zip_behind(h5(tmp_path / "m.h5", userblock_size=userblock), member=b"data")
    with h5py.File(path) as one, zipfile.ZipFile(path) as other:
        assert (list(one), other.namelist()) == (["x"], ["member"])
    refused(path, TWO_IN_ONE)


def test_a_whole_keras_file_behind_an_hdf5_file_is_refused(tmp_path: Path) -> None:
    path = h5(tmp_path / "m.h5")
    path.write_bytes(path.read_bytes() + KERAS.read_bytes())
    assert zipfile.is_zipfile(path)
    refused(path, TWO_IN_ONE)


def test_weights_of_a_folder_or_an_archive_are_not_two_in_one_either(tmp_path: Path) -> None:
    with zipfile.ZipFile(KERAS) as archive:
        archive.extractall(tmp_path / "folder")
    weights = with_zip_behind(tmp_path / "folder" / "model.weights.h5", member=b"data")
    refused(tmp_path / "folder", r"model\.weights\.h5: .*" + TWO_IN_ONE)
    with zipfile.ZipFile(KERAS) as old, zipfile.ZipFile(tmp_path / "m.keras", "w") as new:
        for entry in old.infolist():
            same = entry.filename != weights.name
            new.writestr(entry, old.read(entry) if same else weights.read_bytes())
    refused(tmp_path / "m.keras", r"model\.weights\.h5: .*" + TWO_IN_ONE)


def test_a_zip_of_many_members_behind_an_hdf5_file_is_refused(tmp_path: Path) -> None:
    names = {f"{number:0200}": b"" for number in range(limits.MAX_DIRECTORY_BYTES // 240)}
    refused(with_zip_behind(h5(tmp_path / "m.h5"), **names), TWO_IN_ONE)


@pytest.mark.parametrize(
    "data",
    [
        b"PK\3\4",
        b"PK\5\6",
        b"PK\5\6" + bytes(18),
        b"PK\1\2" + bytes(42) + b"PK\5\6" + bytes(18),
        b"PK\5\6" + b"\1" * 18,
        b"PK\5\6" + b"\xff" * 18,
        b"PK\6\7" + bytes(16) + b"PK\5\6" + b"\xff" * 16 + bytes(2),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_bytes_of_a_zip_in_an_hdf5_file_are_no_zip(
    data: bytes, inside: bool, tmp_path: Path
) -> None:
    path = h5(tmp_path / "m.h5")
    if inside:
        with h5py.File(path, "a") as file:
            file["y"] = np.frombuffer(data * 99, np.uint8)
    else:
        path.write_bytes(path.read_bytes() + data)
    with open_container(path) as container:
        assert container.kind == "hdf5"


def zipped_at(start: int, name: str, data: bytes, path: Path) -> Path:
    """A copy of ``KERAS`` in which the bytes of the stored member ``name`` begin at ``start``."""
    with zipfile.ZipFile(KERAS) as old, zipfile.ZipFile(path, "w") as new:
        before = zipfile.ZipInfo("first")
        new.writestr(before, bytes(start - 2 * 30 - len("first") - len(name)))
        new.writestr(zipfile.ZipInfo(name), data)
        for entry in old.infolist():
            if entry.filename != name:
                new.writestr(entry, old.read(entry))
    assert path.read_bytes()[start:].startswith(data[:8])
    return path


@pytest.mark.parametrize("start", [512, 2048])
def test_an_archive_that_hdf5_can_read_is_refused(start: int, tmp_path: Path) -> None:
    other = h5(tmp_path / "other.h5").read_bytes()
    refused(zipped_at(start, "assets/x", other, tmp_path / "m.keras"), TWO_IN_ONE)


@pytest.mark.parametrize("start", [513, 2048])
def test_weights_that_lie_where_hdf5_looks_for_them_are_read(start: int, tmp_path: Path) -> None:
    """Both programs read the same then; it may happen to any file."""
    with zipfile.ZipFile(KERAS) as archive:
        weights = archive.read("model.weights.h5")
    path = zipped_at(start, "model.weights.h5", weights, tmp_path / "m.keras")
    assert describe(read_model(path)) == describe(read_model(KERAS))


# --- In the place of a file ---


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "gone.h5", r"^cannot be opened \(No such file or directory\)")
    (tmp_path / "model_2.h5").touch()
    near = r"^cannot be opened \(No such file or directory\); did you mean .*model_2\.h5\?"
    refused(tmp_path / "modle_2.h5", near)
    refused(Path("https://a.b/m.h5"), r"; https://a\.b/m\.h5 is an address: download it first")
    refused(tmp_path / "a\0b", r"^cannot be opened \(.*null")
    refused(tmp_path / ("n" * 300), r"^cannot be opened \(File name too long\)")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_that_takes_the_files_place_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    file = h5(tmp_path / "m.h5").stat()
    monkeypatch.setattr(Path, "stat", lambda self, **_: file)
    refused(tmp_path / "pipe", "^a pipe")


@pytest.mark.skipif(sys.platform == "win32", reason="no such files here")
def test_devices_and_sockets(tmp_path: Path) -> None:
    refused(Path("/dev/null"), "^a device; the input must be a file")
    place = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
        refused(place, "^a socket; the input must be a file")


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = h5(tmp_path / "m.h5")
    container = open_container(path)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(InvalidModelFileError, match=r"^the file changed while it was read; run"):
        container.close()
    with pytest.raises(UnsupportedLayerError, match="first"):
        with open_container(path):
            os.utime(path, (1, 1))
            raise UnsupportedLayerError("first")


def test_it_can_be_closed_early_and_twice(tmp_path: Path) -> None:
    with open_container(h5(tmp_path / "m.h5")) as container:
        (array,) = container.store.arrays(["x"])
        assert array.read().shape == (99,)
        container.store.close()
        with pytest.raises(ValueError, match="closed file"):
            array.read()
        container.close()
        container.close()


def test_a_read_only_file_is_enough(tmp_path: Path) -> None:
    path = h5(tmp_path / "m.h5")
    path.chmod(0o444)
    before = path.read_bytes()
    with open_container(path) as container:
        assert container.store.kind("x") == "dataset"
    assert path.read_bytes() == before


# --- Windows of files ---


def test_windows_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(100)))
    with (tmp_path / "f").open("rb", buffering=0) as file:
        window = Window(file, 10, 50)
        assert window.read(3, 47) == bytes([57, 58, 59])
        assert window.head(9, 47) == bytes([57, 58, 59])
        assert window.part(40, 10).read(10) == bytes(range(50, 60))
        for at, size in ((41, 10), (-1, 2), (0, -1), (51, 0)):
            with pytest.raises(InvalidModelFileError, match="are needed, but there are 50"):
                window.part(at, size)
        reader = WindowFile(window, most=20)
        assert reader.readable()
        assert reader.seekable()
        assert reader.seek(-5, os.SEEK_END) == 45 == reader.tell()
        assert reader.read() == bytes(range(55, 60))
        assert reader.read(5) == b""
        reader.seek(0)
        buffer = bytearray(4)
        assert reader.readinto(buffer) == 4
        assert buffer == bytes(range(10, 14))
        with pytest.raises(InvalidModelFileError, match="a block of 46 bytes where 20 are allowed"):
            reader.read()
        with pytest.raises(OSError, match="negative seek"):
            reader.seek(-1)


# --- Strict JSON ---

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
)


@settings(max_examples=examples(90), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSON)
def test_json_is_read_as_written(value: object) -> None:
    assert parse_json(json.dumps(value), place="config.json") == value


def test_keras_own_nan_and_infinity_are_read() -> None:
    read = parse_json('{"l2": NaN, "value": Infinity, "low": -Infinity}', place="")
    assert read["l2"] != read["l2"]
    assert (read["value"], read["low"]) == (float("inf"), float("-inf"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"not JSON \(Expecting value, line 1 column 1\)"),
        ('{"a": 1,}', r"not JSON \("),
        ("{'a': 1}", r"not JSON \("),
        ('{"a": 1} x', r"not JSON \(Extra data"),
        ('"\n"', r"not JSON \(Invalid control character"),
        ('{"a": 1, "b": {"units": 3, "units": 4}}', "the key 'units' occurs twice in one object"),
        ("1" * 5000, "an integer of 5000 digits"),
        ("-" + "1" * 20, "an integer of 21 digits"),
        ("1e400", "the number 1e400 is too large"),
        ("-1e400", "the number -1e400 is too large"),
        ("[" * 201 + "]" * 201, "nested deeper than 200 levels"),
        ('{"a":' * 201 + "1" + "}" * 201, "nested deeper than 200 levels"),
        ("[" * 500_000, "nested deeper than 200 levels"),
        ("[" + "1," * 2_000_001 + "1]", "more than 2000000 values"),
        ('"\\ud800"', "a text holds half a character"),
        ('{"\\udfff": 1}', "a text holds half a character"),
    ],
    ids=range(16),
)
def test_json_that_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidModelFileError, match=rf"^model_config: {words}.*; refused$"):
        parse_json(text, place="model_config")


def test_json_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_JSON_BYTES", 10)
    with pytest.raises(InvalidModelFileError, match="JSON of 11 characters where 10 are allowed"):
        parse_json('"123456789"', place="c")


def test_an_object_with_its_keys() -> None:
    assert parse_object('{"a": 1}', place="c", needed=["a"]) == {"a": 1}
    with pytest.raises(InvalidModelFileError, match=r"^c: a JSON list where an object is expected"):
        parse_object("[]", place="c")
    with pytest.raises(InvalidModelFileError, match=r"^c: without b, c; refused"):
        parse_object('{"a": 1}', place="c", needed=["a", "b", "c"])


def test_text_is_utf8() -> None:
    assert decode_text("grün".encode(), place="c") == "grün"
    with pytest.raises(InvalidModelFileError, match=r"^c: not UTF-8 text \(byte 2\); refused"):
        decode_text(b"gr\xfcn", place="c")
