"""Run the command line on fixtures, and make changed copies of model files."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from fixture_files import FIXTURES
from typer.testing import CliRunner

from keras2torch_birnn.cli import app

# A masked embedding under two Bidirectional layers, concat and sum.
MASKED = FIXTURES / "tf.keras-2.15.0" / "mask_stack_bi_dense.h5"
# The same small stack in both containers of Keras 3.
STACK_H5 = FIXTURES / "keras-3.15.1" / "stack_same_class.h5"
STACK_KERAS = FIXTURES / "keras-3.15.1" / "stack_same_class.keras"
OLD = FIXTURES / "keras-2.2.4" / "hard_sigmoid_stack.h5"
# Text in front: it is converted from a later layer on.
# Weights alone, and the architecture that goes with them.
WEIGHTS = FIXTURES / "keras-2.3.1" / "weights_mask_weights.h5"
ARCHITECTURE = FIXTURES / "keras-2.3.1" / "weights_mask.json"

# The least that is taken for a file of ours, and so may be replaced.
_HEADER = b'{"__metadata__":{"format":"keras2torch_birnn/1"}}'
OLD_OUT = len(_HEADER).to_bytes(8, "little") + _HEADER

# The installed command, beside the Python that runs the tests.
COMMAND = (str(Path(sys.executable).with_name("k2t")),)


@dataclass(frozen=True)
class Run:
    """Result of one run of the command."""

    code: int
    out: str
    err: str

    def lines(self, kind: str) -> list[str]:
        """Return the texts after ``k2t: KIND: `` on stderr."""
        start = f"k2t: {kind}: "
        return [line[len(start) :] for line in self.err.splitlines() if line.startswith(start)]


def k2t(*arguments: object) -> Run:
    """Run the command inside this process."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Run(result.exit_code, result.stdout, result.stderr)


def k2t_process(*arguments: object, **options: Any) -> Run:
    """Run the command as users do, in a process of its own."""
    return run_process(*COMMAND, *arguments, **options)


def run_process(*command: object, **options: Any) -> Run:
    """Run any program."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, **options
    )
    return Run(done.returncode, done.stdout, done.stderr)


def assert_refused(run: Run, code: int, file: object, words: str = "", lines: int = 1) -> None:
    """Assert one line per problem, in the contract's form, and no other output."""
    errors = run.lines("error")
    assert run.code == code, run.err
    assert len(errors) == lines == len(run.err.splitlines()) - len(run.lines("note")), run.err
    assert all(line.startswith(f"{file}: ") for line in errors), run.err
    assert words in run.err
    assert "Traceback" not in run.err


def contents(path: Path) -> dict[str, bytes]:
    """The content of a file, or of every file below a folder, hidden ones too, by their names."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in files}


def changed_h5(source: Path, target: Path, change: Callable[[h5py.File], object]) -> Path:
    """A copy of an HDF5 file after ``change(file)``."""
    shutil.copyfile(source, target)
    with h5py.File(target, "r+") as file:
        change(file)
    return target


def changed_text(source: Path, target: Path, change: Callable[[str], str]) -> Path:
    """A copy of a model, in either container, whose architecture has passed through ``change``."""

    def in_file(file: h5py.File) -> None:
        text = file.attrs["model_config"]
        file.attrs["model_config"] = change(text.decode() if isinstance(text, bytes) else text)

    def in_archive(members: dict[Any, bytes]) -> None:
        members["config.json"] = change(members["config.json"].decode()).encode()

    if source.suffix == ".keras":
        return changed_archive(source, target, in_archive)
    return changed_h5(source, target, in_file)


def changed_archive(
    source: Path, target: Path, change: Callable[[dict[Any, bytes]], object]
) -> Path:
    """A copy of a zip archive whose members ``change`` has edited: name, or ZipInfo -> bytes."""
    with zipfile.ZipFile(source) as old:
        members: dict[Any, bytes] = {name: old.read(name) for name in old.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
    return target


def changed_keras(
    source: Path, target: Path, change: Callable[[dict[str, Any], h5py.File], object]
) -> Path:
    """A copy of a ``.keras`` archive; ``change`` edits its parsed architecture and its weights."""

    def in_archive(members: dict[Any, bytes]) -> None:
        model, weights = json.loads(members["config.json"]), io.BytesIO(members["model.weights.h5"])
        with h5py.File(weights, "r+") as file:
            change(model, file)
        members["config.json"] = json.dumps(model).encode()
        members["model.weights.h5"] = weights.getvalue()

    return changed_archive(source, target, in_archive)


def changed_config(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a model, in either container, whose parsed architecture ``change`` has edited."""

    def on_text(text: str) -> str:
        model = json.loads(text)
        change(model)
        return json.dumps(model)

    return changed_text(source, target, on_text)


def layer(model: dict[str, Any], name: str) -> dict[str, Any]:
    """The entry of one layer in a parsed architecture."""
    return next(e for e in model["config"]["layers"] if e["config"]["name"] == name)


def changed_layer(source: Path, target: Path, name: str, **options: Any) -> Path:
    """A copy of a model with other options of one layer, without those that are None."""

    def change(model: dict[str, Any]) -> None:
        config = layer(model, name)["config"]
        config.update(options)
        for key in [key for key, value in options.items() if value is None]:
            del config[key]

    return changed_config(source, target, change)


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with some changes."""
    return {**os.environ, **changes}
