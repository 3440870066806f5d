"""Nothing outside of the model that was given is opened: every container, links and names alike.

What a link or a name leads to is an honest file, so whoever follows it would convert the model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from builders import zip_link
from commands import FIXTURES, MASKED, STACK_H5, STACK_KERAS, changed_archive
from harness import Runner, one_line_each
from tensorflow_files import model_tree, write_checkpoint, write_saved_model, write_tfjs

from keras2torch_birnn.readers.containers import _formats

FOLDER = FIXTURES / "keras-3.15.1" / "as_folder"
SHARD = "variables/variables.data-00000-of-00001"
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


# ---- hostile ones: (folder, outside) -> the path that is given ----------------------------------

Build = Callable[[Path, Path], Path]


def linked(honest: Callable[[Path], Path], name: str) -> Build:
    """Make a model one of whose files or folders is a link."""

    def build(folder: Path, outside: Path) -> Path:
        model = honest(folder)
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


def archive_of_links(name: str) -> Build:
    """Make a ``.keras`` archive one member of which is a link, as ``zip --symlinks`` writes it."""

    def build(folder: Path, outside: Path) -> Path:
        target = outside / "target"

        def change(members: dict[Any, bytes]) -> None:
            target.write_bytes(members.pop(name))
            members[zip_link(name)] = bytes(target)

        return changed_archive(STACK_KERAS, folder / "model.keras", change)

    return build


NO_NAME = "is no name of a file in the folder"
# Files and folders of a model that may be links.
LINKED: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "SavedModel": (
        saved_model,
        ("saved_model.pb", "keras_metadata.pb", "variables", "variables/variables.index", SHARD),
    ),
    "KerasFolder": (keras_folder, ("config.json", "metadata.json", "model.weights.h5")),
    "TensorFlowCheckpoint": (checkpoint, ("ckpt.data-00000-of-00001", "checkpoint")),
    "TensorFlowJS": (tfjs, (WEB,)),
}
# Names of files in an index.
FORMS = {"above": "../../outside/{name}", "absolute": "{outside}/{name}"}
NAMED: dict[str, tuple[Callable[[str], Build], str]] = {
    "HDF5File": (external_link, "link"),
    "TensorFlowCheckpoint": (checkpoint_elsewhere, NO_NAME),
    "TensorFlowJS": (lambda form: named(tfjs, WEB, "model.json", form), NO_NAME),
}
# The name of a container, and how its model leads outside -> its builder, part of the refusal.
LURES: dict[str, tuple[Build, str]] = {
    **{
        f"{kind}: {name} is a link": (linked(honest, name), "a link")
        for kind, (honest, names) in LINKED.items()
        for name in names
    },
    **{
        f"KerasArchive: {name} is a link": (archive_of_links(name), name)
        for name in ("config.json", "model.weights.h5")
    },
    **{
        f"{kind}: {how}": (build(form), words)
        for how, form in FORMS.items()
        for kind, (build, words) in NAMED.items()
    },
}


def test_every_container_is_lured() -> None:
    assert {name.partition(":")[0] for name in LURES} == {
        test.__qualname__.partition(".")[0] for test, _ in _formats()
    }


def read(runner: Runner, model: Path, folder: Path) -> Any:
    """Convert a model with the right to open itself alone."""
    config = folder / "arch.json"
    given = model.parent if model.name == "model.json" else model
    return runner.k2t(
        "convert",
        model,
        folder / "out" / "out.pt",
        *(("--config", config) if config.exists() else ()),
        reads=(given, config),
        writes=(folder / "out",),
        folder=folder / "out",
    )


def places(tmp_path: Path) -> tuple[Path, Path]:
    folder, outside = tmp_path / "work", tmp_path / "outside"
    (folder / "out").mkdir(parents=True)
    outside.mkdir()
    return folder, outside


@pytest.mark.parametrize("name", LURES)
def test_nothing_outside_is_opened(name: str, converting: Runner, tmp_path: Path) -> None:
    folder, outside = places(tmp_path)
    build, words = LURES[name]
    model = build(folder, outside)
    report = read(converting, model, folder)
    assert report.crimes == []
    one_line_each(report, 3, model)
    assert words in report.err, report.err
    assert list((folder / "out").iterdir()) == []


HONEST: dict[str, Build] = {
    honest.__name__: lambda folder, outside, honest=honest: honest(folder)
    for honest in (saved_model, checkpoint, tfjs, keras_folder)
}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", HONEST)
def test_the_same_model_without_a_lure_converts(
    name: str, converting: Runner, tmp_path: Path
) -> None:
    """The measure above is not blind."""
    folder, outside = places(tmp_path)
    report = read(converting, HONEST[name](folder, outside), folder)
    assert (report.code, report.crimes) == (0, []), report.err


def test_the_measure_sees_who_leaves_the_folder(converting: Runner, tmp_path: Path) -> None:
    folder, outside = places(tmp_path)
    model = Path(shutil.copy(STACK_KERAS, outside / "model.keras"))
    report = converting.k2t(
        "inspect", model, reads=(folder,), writes=(folder / "out",), folder=folder / "out"
    )
    assert {*report.crimes} == {f"opens {model}"}
