"""Nothing outside of the model that was given is opened: every container, links and names alike.

What a link or a name leads to is an honest file, so whoever follows it would convert the model.
"""

from __future__ import annotations

import json
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import pytest
from commands import FIXTURES, MASKED, STACK_H5, STACK_KERAS
from harness import Runner, one_line_each
from tensorflow_files import model_tree, write_checkpoint, write_saved_model, write_tfjs

from keras2torch_birnn.readers.containers import FORMATS

FOLDER = FIXTURES / "keras-3.15.1" / "as_folder"
SHARD = "variables/variables.data-00000-of-00001"
CKPT = "run/ckpt.data-00000-of-00001"
WEB = "group1-shard1of1.bin"


def moved(path: Path, outside: Path) -> Path:
    """Move a file or folder outside, where a hostile name or link is to find it."""
    return path.rename(outside / path.name)


# ---- honest models: (folder) -> the path that is given ------------------------------------------


def saved_model(folder: Path) -> Path:
    return write_saved_model(folder / "model", model_tree(MASKED)[0])


def checkpoint(folder: Path) -> Path:
    (folder / "arch.json").write_text(json.dumps(model_tree(MASKED)[1]), encoding="utf-8")
    write_checkpoint(folder / "run" / "ckpt", model_tree(MASKED)[0])
    return folder / "run"


def tfjs(folder: Path) -> Path:
    return write_tfjs(folder / "web", MASKED)


def keras_folder(folder: Path) -> Path:
    return Path(shutil.copytree(FOLDER, folder / "model"))


def shards(folder: Path) -> Path:
    (folder / "set").mkdir()
    for path in FOLDER.parent.glob("in_shards*"):
        shutil.copy(path, folder / "set")
    shutil.move(folder / "set" / "in_shards.json", folder / "arch.json")
    return folder / "set" / "in_shards.weights.json"


HONEST = (saved_model, checkpoint, tfjs, keras_folder, shards)


# ---- hostile ones: (folder, outside) -> the path that is given ----------------------------------

Build = Callable[[Path, Path], Path]


def linked(honest: Callable[[Path], Path], *names: str) -> Build:
    """Make a model some of whose files, below its folder, are links."""

    def build(folder: Path, outside: Path) -> Path:
        model = honest(folder)
        for name in names:
            path = (model if model.is_dir() else model.parent) / name
            path.symlink_to(moved(path, outside))
        return model

    return build


def named(honest: Callable[[Path], Path], file: str, index: str, form: str) -> Build:
    """Make a model whose index names a file that was moved away, as ``form`` says."""

    def build(folder: Path, outside: Path) -> Path:
        model = honest(folder)
        place = model if model.is_dir() else model.parent
        target = moved(place / file, outside)
        text = (place / index).read_text("utf-8")
        name = form.format(name=target.name, outside=outside)
        assert file in text
        (place / index).write_text(text.replace(file, name), encoding="utf-8")
        return model

    return build


def checkpoint_elsewhere(form: str) -> Build:
    """Make a folder whose note names a checkpoint outside."""

    def build(folder: Path, outside: Path) -> Path:
        run = checkpoint(folder)
        for path in run.glob("ckpt*"):
            moved(path, outside)
        name = form.format(name="ckpt", outside=outside)
        (run / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n', encoding="utf-8")
        return run

    return build


def external_link(form: str) -> Build:
    """Make an HDF5 file whose weights are a link into another one."""

    def build(folder: Path, outside: Path) -> Path:
        shutil.copy(STACK_H5, outside / "all.h5")
        model = Path(shutil.copy(STACK_H5, folder / "model.h5"))
        with h5py.File(model, "r+") as file:
            del file["model_weights"]
            target = form.format(name="all.h5", outside=outside)
            file["model_weights"] = h5py.ExternalLink(target, "/model_weights")
        return model

    return build


def zip_of_links(source: Path, name: str) -> Build:
    """Make an archive one member of which is a link, as ``zip --symlinks`` writes it."""

    def build(folder: Path, outside: Path) -> Path:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(folder / "model.keras", "w") as new:
            for entry in old.infolist():
                if entry.filename != name:
                    new.writestr(entry, old.read(entry))
            (outside / "target").write_bytes(old.read(name))
            link = zipfile.ZipInfo(name)
            link.create_system = 3
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            new.writestr(link, str(outside / "target"))
        return folder / "model.keras"

    return build


def packed(honest: Callable[[Path], Path], end: str, member: str = "", kind: str = "") -> Build:
    """Make an archive of a model; ``kind``: one member is a link, or has a name that leads outside.

    ``member``: the end of that member's name.
    """

    def build(folder: Path, outside: Path) -> Path:
        honest(outside)
        if (outside / "arch.json").exists():
            shutil.move(outside / "arch.json", folder / "arch.json")
        files = {
            str(path.relative_to(outside)): path for path in outside.rglob("*") if path.is_file()
        }
        target = next(path for name, path in files.items() if name.endswith(member))
        archive = folder / f"model{end}"
        write = write_zip if end == ".zip" else write_tar
        write(archive, files, target if kind else None, kind)
        return archive

    return build


def write_zip(archive: Path, files: dict[str, Path], target: Path | None, kind: str) -> None:
    with zipfile.ZipFile(archive, "w") as new:
        for name, path in files.items():
            entry = zipfile.ZipInfo(str(path) if (path, kind) == (target, "name") else name)
            entry.create_system = 3
            is_link = (path, kind) == (target, "link")
            if is_link:
                entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            new.writestr(entry, str(path) if is_link else path.read_bytes())


def write_tar(archive: Path, files: dict[str, Path], target: Path | None, kind: str) -> None:
    with tarfile.open(archive, f"w:{'gz' if archive.suffix == '.gz' else ''}") as tar:
        for name, path in files.items():
            if path != target:
                tar.add(path, name)
                continue
            info = tarfile.TarInfo(f"../{name}" if kind == "name" else name)
            if kind == "name":
                info.size = path.stat().st_size
                with path.open("rb") as data:
                    tar.addfile(info, data)
            else:
                info.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
                info.linkname = str(path)
                tar.addfile(info)


def packed_names(end: str, form: str) -> Build:
    """Make an archive of a TF.js model whose index names a file outside, as ``form`` says."""

    def build(folder: Path, outside: Path) -> Path:
        made = folder / "made"
        made.mkdir()
        named(tfjs, WEB, "model.json", form)(made, outside)
        archive = packed(lambda _: made, end)(folder, made)
        shutil.rmtree(made)
        return archive

    return build


PACKED_HONEST = {
    f"{honest.__name__}{end}": packed(honest, end)
    for honest in (saved_model, checkpoint, tfjs)
    for end in (".zip", ".tar.gz")
}


@dataclass(frozen=True)
class Lure:
    """A model that leads outside. ``words``: part of the refusal."""

    container: str
    build: Build
    words: str


FORMS = {"above": "../../outside/{name}", "absolute": "{outside}/{name}"}
LURES: dict[str, Lure] = {
    **{
        f"SavedModel: {name} is a link": Lure("SavedModel", linked(saved_model, name), "a link")
        for name in (
            "saved_model.pb",
            "keras_metadata.pb",
            "variables",
            "variables/variables.index",
            SHARD,
        )
    },
    **{
        f"KerasFolder: {name} is a link": Lure("KerasFolder", linked(keras_folder, name), "a link")
        for name in ("config.json", "metadata.json", "model.weights.h5")
    },
    "ShardedWeights: a shard is a link": Lure(
        "ShardedWeights", linked(shards, "in_shards_00001.weights.h5"), "a link"
    ),
    "TensorFlowCheckpoint: a shard is a link": Lure(
        "TensorFlowCheckpoint", linked(checkpoint, "ckpt.data-00000-of-00001"), "a link"
    ),
    "TensorFlowCheckpoint: the note is a link": Lure(
        "TensorFlowCheckpoint", linked(checkpoint, "checkpoint"), "a link"
    ),
    "TensorFlowJS: a shard is a link": Lure("TensorFlowJS", linked(tfjs, WEB), "a link"),
    "KerasArchive: the config is a link": Lure(
        "KerasArchive", zip_of_links(STACK_KERAS, "config.json"), "config.json"
    ),
    "KerasArchive: the weights are a link": Lure(
        "KerasArchive", zip_of_links(STACK_KERAS, "model.weights.h5"), "model.weights.h5"
    ),
    **{
        f"{container}: {how}": Lure(container, build(form), words)
        for how, form in FORMS.items()
        for container, build, words in (
            ("HDF5File", external_link, "link"),
            ("TensorFlowCheckpoint", checkpoint_elsewhere, "is no name of a file in the folder"),
            (
                "TensorFlowJS",
                lambda form: named(tfjs, WEB, "model.json", form),
                "is no name of a file in the folder",
            ),
            (
                "ShardedWeights",
                lambda form: named(
                    shards, "in_shards_00001.weights.h5", "in_shards.weights.json", form
                ),
                "is not the name of a shard beside the index",
            ),
        )
    },
    **{
        f"PackedModel: {honest.__name__}{end}, {kind}": Lure(
            "PackedModel", packed(honest, end, member, kind), ""
        )
        for honest, member in ((saved_model, SHARD), (checkpoint, CKPT), (tfjs, WEB))
        for end, kind in (
            *((".zip", kind) for kind in ("link", "name")),
            *((".tar", kind) for kind in ("link", "hard link", "name")),
            *((".tar.gz", kind) for kind in ("link", "name") if honest is saved_model),
        )
    },
    **{
        f"PackedModel: the index of a tfjs{end}, {how}": Lure(
            "PackedModel", packed_names(end, form), "is no name of a file in the folder"
        )
        for how, form in FORMS.items()
        for end in (".zip", ".tar")
    },
}


def test_every_container_is_lured() -> None:
    assert {lure.container for lure in LURES.values()} == {form.name for form in FORMATS}


def read(runner: Runner, model: Path, folder: Path, name: str = "") -> Any:
    """Convert a model with the right to open itself alone."""
    config = folder / "arch.json"
    given = model if model.is_dir() or model.name != "in_shards.weights.json" else model.parent
    given = given.parent if given.name == "model.json" else given
    return runner.k2t(
        "convert",
        model,
        folder / "out" / "out.pt",
        *(("--config", config) if config.exists() else ()),
        reads=(given, config),
        writes=(folder / "out",),
        folder=folder / "out",
        name=f"outside: {name}",
    )


def places(tmp_path: Path) -> tuple[Path, Path]:
    folder, outside = tmp_path / "work", tmp_path / "outside"
    (folder / "out").mkdir(parents=True)
    outside.mkdir()
    return folder, outside


@pytest.mark.every(2)
@pytest.mark.parametrize("name", LURES)
def test_nothing_outside_is_opened(name: str, converting: Runner, tmp_path: Path) -> None:
    folder, outside = places(tmp_path)
    model = LURES[name].build(folder, outside)
    report = read(converting, model, folder, name)
    assert report.crimes == []
    one_line_each(report, 3, model)
    assert LURES[name].words in report.err, report.err
    assert list((folder / "out").iterdir()) == []


@pytest.mark.every(3)
@pytest.mark.parametrize("honest", HONEST)
def test_the_same_model_without_a_lure_converts(
    honest: Callable[[Path], Path], converting: Runner, tmp_path: Path
) -> None:
    """The measure above is not blind."""
    folder, _ = places(tmp_path)
    report = read(converting, honest(folder), folder)
    assert (report.code, report.crimes) == (0, []), report.err


@pytest.mark.every(3)
@pytest.mark.parametrize("name", PACKED_HONEST)
def test_the_same_archive_without_a_lure_converts(
    name: str, converting: Runner, tmp_path: Path
) -> None:
    folder, outside = places(tmp_path)
    report = read(converting, PACKED_HONEST[name](folder, outside), folder)
    assert (report.code, report.crimes) == (0, []), report.err


def test_the_measure_sees_who_leaves_the_folder(converting: Runner, tmp_path: Path) -> None:
    folder, outside = places(tmp_path)
    model = Path(shutil.copy(STACK_KERAS, outside / "model.keras"))
    report = converting.k2t(
        "inspect", model, reads=(folder,), writes=(folder / "out",), folder=folder / "out"
    )
    assert {*report.crimes} == {f"opens {model}"}
