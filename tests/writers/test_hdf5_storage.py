"""Ways in which HDF5 stores arrays, and in which archives store members."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from hdf5_files import datasets
from specs import FIXTURES
from trained import differing, train, write_trained

import keras2torch_birnn as k2t
from keras2torch_birnn import limits
from keras2torch_birnn.trainers import copies

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


# Every filter that k2t reads; files of Keras have some of them (``test_written_fixtures.py``).
FILTERS = {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True}


def test_chunks(tmp_path: Path) -> None:
    source = stored_as(SOURCE, tmp_path / "source.h5", **FILTERS)
    model = k2t.convert(source)
    assert k2t.write_back(model, source, tmp_path / "same.h5").changed == 0
    assert (tmp_path / "same.h5").read_bytes() == source.read_bytes()

    out = tmp_path / "new.h5"
    k2t.write_back(train(model), source, out)
    assert differing(model, out) == []
    with h5py.File(out) as new, h5py.File(source) as old:  # the library checks its checksums
        assert dict(new.attrs) == dict(old.attrs)
        for name, one in datasets(new).items():
            other = old[name]
            assert (one.chunks, one.compression) == (other.chunks, other.compression)
            assert (one.shuffle, one.fletcher32) == (other.shuffle, other.fletcher32)
            assert one.shape == other[...].shape == one[...].shape


def test_a_user_block(tmp_path: Path) -> None:
    for storage in ({}, FILTERS):
        inner = stored_as(SOURCE, tmp_path / "inner.h5", **storage)
        source, out = tmp_path / "source.h5", tmp_path / "new.h5"
        source.write_bytes(b"user".ljust(512, b".") + inner.read_bytes())
        write_trained(source, out)
        assert out.read_bytes()[:512] == source.read_bytes()[:512]
        out.unlink()


# ---- archives ----------------------------------------------------------------------------------


def repacked(target: Path, change: Callable[[Path], object], **how: Any) -> Path:
    """Pack the members of ARCHIVE again, its weights changed and before the rest."""
    folder = target.with_suffix(".folder")
    folder.mkdir()
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
        names = archive.namelist()
    change(folder / "model.weights.h5")
    names.sort(key=lambda name: name != "model.weights.h5")
    with zipfile.ZipFile(target, "w", **how) as archive:
        for name in names:
            with archive.open(name, "w", force_zip64=name.endswith(".h5")) as member:
                member.write((folder / name).read_bytes())
        archive.comment = b"kept"
    return target


def test_members_of_archives(tmp_path: Path) -> None:
    """Deflated, as Keras writes none."""

    def change(path: Path) -> None:
        stored_as(path, path.with_suffix(".new"), **FILTERS)
        path.with_suffix(".new").replace(path)

    source = repacked(tmp_path / "source.keras", change, compression=zipfile.ZIP_DEFLATED)
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
            assert before.date_time == after.date_time
            if not before.filename.endswith(".h5"):
                assert one.read(before) == other.read(after)


def test_the_library_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stored_as(SOURCE, tmp_path / "source.h5", **FILTERS)
    model = train(k2t.convert(source))
    script = tmp_path / "child.py"
    script.write_text("import os; os._exit(3)")
    monkeypatch.setattr(copies, "_SCRIPT", script)
    with pytest.raises(k2t.InvalidModelFileError, match="crashed or did not finish"):
        k2t.write_back(model, source, tmp_path / "new.h5")
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(limits, "MAX_REWRITE_SECONDS", 0)
    with pytest.raises(k2t.InvalidModelFileError, match="its weights cannot be written again"):
        k2t.write_back(model, source, tmp_path / "new.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["child.py", "source.h5"]
