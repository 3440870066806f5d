"""The fixtures in TensorFlow's own containers, each in a tar archive."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from specs import FIXTURES

from keras2torch_birnn.spec import Array

TENSORFLOW = FIXTURES / "tensorflow"
ENTRIES: Mapping[str, Mapping[str, Any]] = {
    entry["file"]: entry
    for entry in json.loads((TENSORFLOW / "manifest.json").read_text("utf-8"))["files"]
}


# What each file shows, for the choice of ``make test``: its case, and its kind by its writer.
FEATURES: Mapping[str, list[tuple[str, ...]]] = {
    file: [(entry["case"],), (entry["writer"], entry["kind"])] for file, entry in ENTRIES.items()
}


@dataclass(frozen=True)
class Unpacked:
    """The paths of an unpacked fixture."""

    model: Path  # a folder, the prefix of a checkpoint, or a model.json
    config: Path | None  # the architecture of a checkpoint


@dataclass(frozen=True)
class Recorded:
    """The calls that the writer made one after another, and their outputs."""

    inputs: tuple[tuple[Array, ...], ...]  # one tuple per call
    outputs: tuple[tuple[Array, ...], ...]


def files(expect: str) -> list[str]:
    """Return the fixtures of which `expect` is to come."""
    return [file for file, entry in ENTRIES.items() if entry["expect"] == expect]


def unpack(file: str, folder: Path) -> Unpacked:
    """Unpack a fixture into `folder`."""
    entry = ENTRIES[file]
    with tarfile.open(TENSORFLOW / file) as archive:
        archive.extractall(folder, filter="data")
    config = None if entry["config"] is None else folder / entry["config"]
    return Unpacked(folder / entry["model"], config)


def names_of_arrays(file: str) -> list[str]:
    """Return what is recorded of a fixture."""
    npz = ENTRIES[file]["npz"]
    if npz is None:
        return []
    with np.load(TENSORFLOW / npz) as archive:
        return list(archive.files)


def _numbered(data: Mapping[str, Array], letter: str, suffix: str) -> Sequence[Array]:
    """Return the arrays x0, x1, ... with a suffix."""
    names = [f"{letter}{index}{suffix}" for index in range(len(data))]
    return [data[name] for name in names if name in data]


def recorded(file: str, suffix: str = "") -> Recorded:
    """Return what the writer computed; suffix `_float64` or `_js` for what is there besides.

    Raises:
        LookupError: There are no such outputs.
    """
    entry = ENTRIES[file]
    with np.load(TENSORFLOW / entry["npz"]) as archive:
        data = {name: archive[name] for name in archive.files if name[0] in "xy"}
    inputs, outputs = _numbered(data, "x", ""), _numbered(data, "y", suffix)
    if not outputs:
        raise LookupError(f"{file} has no outputs y0{suffix}")
    each = entry["outputs_per_call"]
    calls = len(outputs) // each
    width = len(inputs) // calls
    return Recorded(
        tuple(tuple(inputs[i * width : (i + 1) * width]) for i in range(calls)),
        tuple(tuple(outputs[i * each : (i + 1) * each]) for i in range(calls)),
    )
