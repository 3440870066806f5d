"""The .keras archive: right on good ones, one clear error on the rest."""

from __future__ import annotations

import io
import re
import struct
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from keras2torch_birnn.errors import InvalidModelFileError, K2TError
from keras2torch_birnn.readers.containers import open_container, zip_archive
from keras2torch_birnn.readers.hdf5.store import HDF5Store

CONFIG = '{"class_name": "Sequential", "config": {"name": "grün"}}'
METADATA = '{"keras_version": "3.15.1"}'
KERNEL = np.arange(15, dtype="f4").reshape(3, 5)


def weights() -> bytes:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["layers/dense/vars/0"] = KERNEL
    return memory.getvalue()


MEMBERS: dict[str, Any] = {
    "metadata.json": METADATA,
    "config.json": CONFIG,
    "model.weights.h5": weights(),
}


def zipped(members: dict[str, Any], method: int = zipfile.ZIP_STORED) -> bytes:
    memory = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(memory, "w", method) as file:
        warnings.simplefilter("ignore")  # about duplicates, which we want
        for name, data in members.items():
            with (
                file.open(zipfile.ZipInfo(name), "w")
                if method < 0
                else file.open(name, "w", force_zip64=True) as member
            ):
                member.write(data if isinstance(data, bytes) else data.encode())
    return memory.getvalue()


def refused(data: bytes, words: str, folder: Path) -> None:
    path = folder / "m.keras"
    path.write_bytes(data)
    with pytest.raises(InvalidModelFileError, match=words) as caught:
        open_container(path).close()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_reads_stored_and_deflated_archives(method: int, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(zipped(MEMBERS | {"assets/words.txt": "a b c"}, method))
    with open_container(path) as container:
        assert container.kind == "keras_zip"
        assert container.config_text == CONFIG
        assert container.metadata_text == METADATA
        (kernel,) = container.store.arrays(["/layers/dense/vars/0"])
        assert kernel.read().tolist() == KERNEL.tolist()
    assert list(tmp_path.iterdir()) == [path]


def test_stored_weights_are_used_where_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(zipped(MEMBERS))
    with open_container(path) as container:
        store = container.store
        assert isinstance(store, HDF5Store)
        window = store._parser._window
        assert window.size == len(weights())
        assert window.offset == path.read_bytes().index(b"\x89HDF")


@pytest.mark.parametrize("name", MEMBERS)
def test_a_missing_member(name: str, tmp_path: Path) -> None:
    others = {other: data for other, data in MEMBERS.items() if other != name}
    refused(zipped(others), rf"^{re.escape(name)}: missing in the archive; refused", tmp_path)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_archive(part: float, tmp_path: Path) -> None:
    data = zipped(MEMBERS)
    refused(data[: int(len(data) * part)], "^a truncated zip archive", tmp_path)


def test_an_entry_that_points_nowhere(tmp_path: Path) -> None:
    data = bytearray(zipped(MEMBERS))
    at = data.rindex(b"config.json") - 46 + 42
    (offset,) = struct.unpack_from("<I", data, at)
    struct.pack_into("<I", data, at, offset + 1)
    refused(bytes(data), r"^config\.json: no member of the archive where one should be", tmp_path)


def test_a_bomb_that_announces_little(tmp_path: Path) -> None:
    """The announced size is not trusted: what comes out is counted, and its checksum is wrong."""
    data = bytearray(zipped(MEMBERS | {"config.json": bytes(1 << 20)}, zipfile.ZIP_DEFLATED))
    struct.pack_into("<I", data, data.rindex(b"config.json") - 46 + 24, 100)
    refused(bytes(data), "a damaged zip archive .Bad CRC-32", tmp_path)


@pytest.mark.parametrize(
    "error",
    [zipfile.BadZipFile, EOFError, struct.error, RuntimeError, NotImplementedError, KeyError],
)
def test_whatever_zipfile_raises_is_an_error_of_the_file(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> None:
        raise error("why\x1b[31m")

    monkeypatch.setattr(zip_archive, "_check_members", fail)
    refused(zipped(MEMBERS), r"a damaged zip archive \('?why", tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_no_open_file_is_left_behind(tmp_path: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    path, before = tmp_path / "m.keras", count()
    broken = MEMBERS | {"model.weights.h5": b"no HDF5"}
    for members, method in ((MEMBERS, 8), (broken, 8), (broken, 0), ({}, 0)):
        path.write_bytes(zipped(members, method))
        try:
            open_container(path).close()
        except K2TError:
            pass
        assert count() == before
