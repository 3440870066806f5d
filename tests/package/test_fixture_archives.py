"""The archives of the fixtures: what is packed comes back, once, for all who ask at once."""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fixture_archives
import fixture_files
import pytest
from fixture_archives import MissingArchivesError, pack, unpack_in_place, unpacked

FILES = {
    "keras-9.7.1/small.h5": b"h" * 1009,
    "keras-9.7.1/folder/config.json": b"{}",
    "plugins/keras-9.7.1/center.keras": b"k" * 503,
    "rules/keras-9.7.1-legacy.npz": b"n" * 251,
    "pins/keras-9.7.1.txt": b"# Python 3.9.5\n",
    "tensorflow/tf.keras-9.5.3/small.weights.tar": b"w" * 127,
}
PLAIN = {"manifest.json": b"[]", "plugins/manifest.json": b"[7]", "yaml/small.yaml": b"a: 3\n"}
SCRIPTS = {
    "generate.py": b"import keras\n",
    "cases/dense.py": b"CASES = ()\n",
    "README.md": b"# F\n",
}


def write(store: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(content)


def read(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".digest")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder of fixtures whose archives are packed."""
    store = tmp_path / "fixtures"
    write(store, {**FILES, **PLAIN, **SCRIPTS})
    assert [path.name for path in pack(store)] == [
        "keras-9.7.1.tar.xz",
        "tf.keras-9.5.3.tar.xz",
    ]
    return store


# ---- packing ------------------------------------------------------------------------------------


def test_an_archive_for_each_writer_replaces_its_plain_files(store: Path, tmp_path: Path) -> None:
    archives = {"keras-9.7.1.tar.xz", "tf.keras-9.5.3.tar.xz"}
    packed = read(store)
    assert set(packed) == {*PLAIN, *SCRIPTS, *archives}
    assert {path.name for path in store.iterdir() if path.is_dir()} == {"plugins", "yaml", "cases"}
    with tarfile.open(store / "keras-9.7.1.tar.xz") as archive:
        assert {*archive.getnames()} == {name for name in FILES if "tf.keras" not in name}
    # The same files give the same bytes, and one that is in its archive already changes nothing.
    again = tmp_path / "again"
    write(again, dict(reversed(FILES.items())))
    assert all(path.read_bytes() == packed[path.name] for path in pack(again))
    write(store, FILES)
    assert pack(again) == pack(store) == []
    assert read(store) == packed


def test_new_files_join_the_others_replace_their_namesakes_and_can_be_deleted(
    store: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    more = {"cut/keras-9.7.1/part.h5": b"p" * 83, "keras-9.7.1/small.h5": b"x" * 1013}
    write(store, more)
    assert read(unpacked(store, tree)) == {**FILES, **PLAIN, **more}  # before they are packed
    assert [path.name for path in pack(store)] == ["keras-9.7.1.tar.xz"]
    assert read(unpacked(store, tree)) == {**FILES, **PLAIN, **more}
    unpack_in_place("keras-9.7.1", store)
    assert not (store / "keras-9.7.1.tar.xz").exists()
    (store / "keras-9.7.1/small.h5").unlink()
    pack(store)
    left = {**FILES, **PLAIN, **more}
    del left["keras-9.7.1/small.h5"]
    assert read(unpacked(store, tree)) == left


# ---- unpacking ----------------------------------------------------------------------------------


def test_nothing_is_unpacked_again_before_something_changes(store: Path, tmp_path: Path) -> None:
    tree = unpacked(store, tmp_path / "tree")
    (tree / "mine").touch()
    assert unpacked(store, tree) == tree
    assert (tree / "mine").exists()
    write(store, {"plugins/manifest.json": b"[11]"})
    assert (unpacked(store, tree) / "plugins/manifest.json").read_bytes() == b"[11]"
    assert not (tree / "mine").exists()
    (store / "tf.keras-9.5.3.tar.xz").unlink()
    assert not (unpacked(store, tree) / "tensorflow").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"fixtures", "tree"}


def test_all_who_ask_at_once_find_everything(store: Path, tmp_path: Path) -> None:
    tree, everything = tmp_path / "tree", {**FILES, **PLAIN}
    with ThreadPoolExecutor(7) as threads:
        for _ in range(5):
            write(store, {"manifest.json": (everything["manifest.json"] + b" ")})
            everything["manifest.json"] += b" "
            asked = [threads.submit(unpacked, store, tree) for _ in range(7)]
            assert all(one.result() == tree for one in asked)
            assert read(tree) == everything
    assert {path.name for path in tmp_path.iterdir()} == {"fixtures", "tree"}


def test_an_archive_that_reaches_outside_is_refused(store: Path, tmp_path: Path) -> None:
    with tarfile.open(store / "keras-9.1.0.tar.xz", "w:xz") as packed:
        facts = tarfile.TarInfo("../outside")
        facts.size = 3
        packed.addfile(facts, io.BytesIO(b"out"))
    with pytest.raises(tarfile.OutsideDestinationError):
        unpacked(store, tmp_path / "tree")
    assert {path.name for path in tmp_path.iterdir()} == {"fixtures"}


def test_a_python_without_lzma_says_what_to_install(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lzma", None)
    with pytest.raises(
        RuntimeError, match=r"no lzma, which unpacks keras-9\.7\.1\.tar\.xz: install lib"
    ):
        unpacked(store, tmp_path / "tree")


# ---- the source archive -------------------------------------------------------------------------


def test_a_test_is_skipped_that_needs_a_file_which_the_source_archive_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "fixtures", {**PLAIN, "tf.keras-2.15.0/plain.h5": b"h"})
    monkeypatch.setattr(
        fixture_files, "unpacked", lambda: unpacked(tmp_path / "fixtures", tmp_path / "tree")
    )
    monkeypatch.setattr(fixture_files, "STORE", tmp_path / "fixtures")
    fixtures = fixture_files.find_fixtures()
    assert (fixtures / "plugins" / "manifest.json").read_bytes() == b"[7]"
    assert (fixtures / "tf.keras-2.15.0" / "plain.h5").exists()
    with pytest.raises(pytest.skip.Exception, match="the source archive leaves them out; a clone"):
        fixtures / "tf.keras-2.15.0" / "other.h5"
    with pytest.raises(MissingArchivesError):
        unpacked(tmp_path / "fixtures", tmp_path / "tree")


# ---- the fixtures of this repository ------------------------------------------------------------


def test_the_fixtures_fit_in_a_hand() -> None:
    hidden = {"__pycache__", ".pyc"}
    found = [
        path
        for path in fixture_archives.STORE.rglob("*")
        if path.is_file() and not hidden & {path.parent.name, path.suffix}
    ]
    assert len(found) <= 100
    assert sum(path.stat().st_size for path in found) <= 30_000_000


def test_every_file_of_a_writer_is_packed() -> None:
    """`python tools/fixture_archives.py pack` does that."""
    plain = fixture_archives.plain_files()
    assert [name for name in plain if fixture_archives.writer_of(name)] == []
