"""Ways in which HDF5 stores arrays: in place, or written again by the library."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_files import datasets
from specs import FIXTURES
from trained import differing, train, write_trained

import keras2torch_birnn as k2t
from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.writers import hdf5, zip_archive

SOURCE = FIXTURES / "keras-2.3.1/mask_bi_gru_after_seq.h5"
ARCHIVE = FIXTURES / "keras-3.15.1/mask_stack_plain.keras"


def stored_as(source: Path, target: Path, **storage: Any) -> Path:
    """Copy an HDF5 file with all of its arrays stored in another way."""
    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        for name, array in datasets(file).items():
            values = array[...]
            del file[name]
            options = dict(storage)
            if values.ndim == 0:
                options = {}
            elif "chunks" in storage:  # that do not divide the shape
                options["chunks"] = tuple(max(1, size * 2 // 3) for size in values.shape)
            file.create_dataset(name, data=values, **options)
    return target


IN_PLACE: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": True},
    "shuffled": {"chunks": True, "shuffle": True},
    "summed": {"chunks": True, "fletcher32": True},
    "shuffled and summed": {"chunks": True, "shuffle": True, "fletcher32": True},
}
REWRITTEN: dict[str, dict[str, Any]] = {
    "gzip": {"chunks": True, "compression": "gzip", "compression_opts": 9},
    "all filters": {
        "chunks": True,
        "compression": "gzip",
        "shuffle": True,
        "fletcher32": True,
    },
}


@pytest.mark.parametrize("storage", [*IN_PLACE, *REWRITTEN])
def test_chunks(storage: str, tmp_path: Path) -> None:
    options = {**IN_PLACE, **REWRITTEN}[storage]
    source = stored_as(SOURCE, tmp_path / "source.h5", **options)
    model = k2t.convert(source)
    assert k2t.write_back(model, source, tmp_path / "same.h5").changed == 0
    assert (tmp_path / "same.h5").read_bytes() == source.read_bytes()

    out = tmp_path / "new.h5"
    notes = k2t.write_back(train(model), source, out).notes
    assert differing(model, out) == []
    assert ("its length may differ" in " ".join(notes)) == (storage in REWRITTEN)
    if storage in IN_PLACE:
        assert out.stat().st_size == source.stat().st_size
    with h5py.File(out) as new, h5py.File(source) as old:  # the library checks its checksums
        assert dict(new.attrs) == dict(old.attrs)
        for name, one in datasets(new).items():
            other = old[name]
            assert (one.chunks, one.compression) == (other.chunks, other.compression)
            assert (one.shuffle, one.fletcher32) == (other.shuffle, other.fletcher32)
            assert one.shape == other[...].shape == one[...].shape


def first_matrix(file: h5py.File) -> str:
    return next(name for name, array in datasets(file).items() if array.ndim == 2)


def test_what_sticks_out_of_an_array_stays(tmp_path: Path) -> None:
    source = stored_as(SOURCE, tmp_path / "source.h5", chunks=True)
    with h5py.File(source, "r+") as file:
        array = file[name := first_matrix(file)]
        last = array.id.get_num_chunks() - 1
        offset = array.id.get_chunk_info(last).chunk_offset
        raw = np.frombuffer(array.id.read_direct_chunk(offset)[1], "<f4").reshape(array.chunks)
        outside = np.ones(array.chunks, bool)
        outside[tuple(slice(n - at) for n, at in zip(array.shape, offset, strict=True))] = False
        array.id.write_direct_chunk(offset, np.where(outside, np.float32(7), raw).tobytes())
    write_trained(source, tmp_path / "new.h5")
    with h5py.File(tmp_path / "new.h5") as file:
        found = np.frombuffer(file[name].id.read_direct_chunk(offset)[1], "<f4")
    assert outside.any()
    assert (found.reshape(outside.shape)[outside] == 7).all()


def test_arrays_in_object_headers(tmp_path: Path) -> None:
    source = tmp_path / "source.h5"
    shutil.copy(SOURCE, source)
    with h5py.File(source, "r+") as file:
        name = first_matrix(file)
        values = file[name][...]
        del file[name]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.COMPACT)
        kind = h5py.h5t.py_create(values.dtype)
        space = h5py.h5s.create_simple(values.shape)
        made = h5py.h5d.create(file.id, name.encode(), kind, space, plan)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    write_trained(source, tmp_path / "new.h5")


def test_a_user_block(tmp_path: Path) -> None:
    for storage in ({}, REWRITTEN["gzip"]):
        inner = stored_as(SOURCE, tmp_path / "inner.h5", **storage)
        source, out = tmp_path / "source.h5", tmp_path / "new.h5"
        source.write_bytes(b"user".ljust(512, b".") + inner.read_bytes())
        write_trained(source, out)
        assert out.read_bytes()[:512] == source.read_bytes()[:512]
        out.unlink()


# ---- archives ----------------------------------------------------------------------------------


def repacked(target: Path, change: Callable[[Path], object] | None = None, **how: Any) -> Path:
    """Pack the members of ARCHIVE again, its weights changed and before the rest."""
    folder = target.with_suffix(".folder")
    folder.mkdir()
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
        names = archive.namelist()
    if change is not None:
        change(folder / "model.weights.h5")
    names.sort(key=lambda name: name != "model.weights.h5")
    with zipfile.ZipFile(target, "w", **how) as archive:
        for name in names:
            with archive.open(name, "w", force_zip64=name.endswith(".h5")) as member:
                member.write((folder / name).read_bytes())
        archive.comment = b"kept"
    return target


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("gzip", [False, True], ids=["plain", "gzip"])
def test_members_of_archives(method: int, gzip: bool, tmp_path: Path) -> None:
    def change(path: Path) -> None:
        stored_as(path, path.with_suffix(".new"), **REWRITTEN["gzip"])
        path.with_suffix(".new").replace(path)

    source = repacked(tmp_path / "source.keras", change if gzip else None, compression=method)
    model = k2t.convert(source)
    k2t.write_back(model, source, tmp_path / "same.keras")
    assert (tmp_path / "same.keras").read_bytes() == source.read_bytes()

    out = tmp_path / "new.keras"
    k2t.write_back(train(model), source, out)
    assert differing(model, out) == []
    with zipfile.ZipFile(source) as one, zipfile.ZipFile(out) as other:
        assert other.testzip() is None
        assert other.comment == b"kept"
        for before, after in zip(one.infolist(), other.infolist(), strict=True):
            assert (before.filename, before.compress_type) == (after.filename, after.compress_type)
            assert (before.date_time, before.extra) == (after.date_time, after.extra)
            if not before.filename.endswith(".h5"):
                assert one.read(before) == other.read(after)


class _Unseekable:
    """A file that a zip is streamed into: checksums then follow the members."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    def write(self, data: bytes) -> int:
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_streamed_archives(method: int, tmp_path: Path) -> None:
    source, out = tmp_path / "source.keras", tmp_path / "new.keras"
    stream = _Unseekable(source)
    with zipfile.ZipFile(ARCHIVE) as one, zipfile.ZipFile(stream, "w", method) as other:
        for name in one.namelist():
            other.writestr(name, one.read(name))
    stream.file.close()
    write_trained(source, out)
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None


def test_a_member_whose_sizes_need_more_than_32_bits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = tmp_path / "source.keras", tmp_path / "weights"
    content.write_bytes(bytes(100003))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(content, "model.weights.h5")
    assert path.stat().st_size < 4099
    monkeypatch.setattr(zip_archive, "_ZIP64", 4099)  # in place of 4 GiB
    with pytest.raises(InvalidModelFileError, match="a zip archive with 4 GiB or more"):
        zip_archive.exchange_member(path, "model.weights.h5", content)


def test_an_unzipped_archive(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "new"
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(source)
    (source / "assets").mkdir(exist_ok=True)
    (source / "assets" / "notes.txt").write_text("kept")
    model = write_trained(source, out)
    assert (out / "assets" / "notes.txt").read_text() == "kept"
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    out_of = tmp_path / "linked"
    (source / "assets" / "link").symlink_to(ARCHIVE)
    with pytest.raises(k2t.InvalidModelFileError, match="assets/link: a link"):
        k2t.write_back(model, source, out_of)
    assert not out_of.exists()


def test_the_library_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stored_as(SOURCE, tmp_path / "source.h5", **REWRITTEN["gzip"])
    model = train(k2t.convert(source))
    script = tmp_path / "child.py"
    script.write_text("import os; os._exit(3)")
    monkeypatch.setattr(hdf5, "_SCRIPT", script)
    with pytest.raises(k2t.InvalidModelFileError, match="crashed or did not finish"):
        k2t.write_back(model, source, tmp_path / "new.h5")
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(limits, "MAX_REWRITE_SECONDS", 0)
    with pytest.raises(k2t.InvalidModelFileError, match="cannot be written again"):
        k2t.write_back(model, source, tmp_path / "new.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["child.py", "source.h5"]


def test_checksums_are_those_of_the_library() -> None:
    rows = np.zeros((4, 64), np.uint8)
    rows[1] = 255
    rows[2, :2] = 255
    rows[3] = np.random.default_rng(1).integers(0, 256, 64)
    for row in rows:
        with h5py.File("x", "w", driver="core", backing_store=False) as file:
            made = file.create_dataset("x", data=row, chunks=(64,), fletcher32=True)
            _, raw = made.id.read_direct_chunk((0,))
        assert hdf5._add_fletcher32(row.tobytes(), 1) == raw
