"""The two files of an export as source: written, recognised, run and checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import nn

from keras2torch_birnn.conversion import Golden, checksum, make_golden_by_model, origin
from keras2torch_birnn.errors import InvalidModelFileError, K2TError, in_file, printable
from keras2torch_birnn.exporting.source.module_text import FIRST_LINE
from keras2torch_birnn.exporting.source.write_source import SourceFiles, write_source
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.saving.atomic import (
    PREFIX,
    FileKind,
    check_output,
    check_replacing,
    write_atomically,
)
from keras2torch_birnn.saving.checkpoint_kind import read_safetensors_format
from keras2torch_birnn.spec import Array
from keras2torch_birnn.verification.report import Comparison
from keras2torch_birnn.verification.tolerance import resolve_tolerance
from keras2torch_birnn.verification.whole_model import compare

_CHILD = Path(__file__).with_name("run_child.py")
_FORMAT = "plain PyTorch source of keras2torch_birnn/1"
_SECONDS = 600  # that a module may take for one small batch


def is_our_source(path: Path) -> bool:
    """Return whether k2t wrote a module, by its first line.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(FIRST_LINE)) == FIRST_LINE.encode()


def is_our_weights_file(path: Path) -> bool:
    """Return whether k2t wrote the weights of a module, by the header.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            window = Window(file, 0, os.fstat(file.fileno()).st_size)
            return read_safetensors_format(window) == _FORMAT
    except InvalidModelFileError:
        return False


SOURCE = FileKind("plain PyTorch source", (".py",), is_our_source)
WEIGHTS = FileKind("the weights of plain PyTorch source", (".safetensors",), is_our_weights_file)


def save_source(source: SourceFiles, path: Path) -> None:
    """Write a module to ``path`` and its weights beside it, without checks."""
    path.write_text(source.text, encoding="utf-8")
    weights = path.with_suffix(WEIGHTS.suffixes[0])
    save_file(dict(source.tensors), weights, metadata={"format": _FORMAT})


def run_source(path: Path, inputs: Sequence[Array]) -> tuple[Array, ...] | str:
    """Run a module in a process that cannot import this package.

    inputs: in Keras' order. Returns its outputs in Keras' order, or the reason why there are none.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "in.npz"), Path(folder, "out.npz")
        named: Mapping[str, Any] = {f"in_{i}": np.asarray(x) for i, x in enumerate(inputs)}
        np.savez(given, **named)
        job = [os.fspath(path.resolve()), os.fspath(given), os.fspath(found)]
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(_CHILD), json.dumps(job)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                cwd=folder,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"it did not finish in {_SECONDS} s"
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            return printable(lines[-1] if lines else f"it ended with code {done.returncode}")
        with np.load(found) as data:
            return tuple(data[f"out_{i}"] for i in range(len(data.files)))


def export_source(
    model: nn.Module, path: str | os.PathLike[str], *, overwrite: bool = True
) -> tuple[SourceFiles, Comparison]:
    """Write a converted model as ``path`` (.py) and its weights beside it (.safetensors).

    The module is run on the golden vectors in a process without this package before either file
    gets its name. A file that k2t did not write is never replaced, unless it is empty.

    Raises:
        UnsupportedLayerError: lists everything that has no source form. OutputError: a file cannot
            be written, or must not be replaced. UsageError: not a converted model.
    """
    place = Path(path)
    outputs = {place.with_suffix(WEIGHTS.suffixes[0]): WEIGHTS, place: SOURCE}
    for file, kind in outputs.items():
        check_output(file, kind)
        check_replacing(file, kind, overwrite=overwrite)
    with in_file(path):
        source = write_source(model)
        parent = Path(os.path.realpath(place)).parent
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent) as folder:
            written = Path(folder, place.name)
            save_source(source, written)
            checked = _check(written, _golden_of(model))
            for file, kind in outputs.items():
                _put_in_place(written.with_name(file.name), file, kind, overwrite=overwrite)
    return source, checked


def _put_in_place(source: Path, place: Path, kind: FileKind, *, overwrite: bool) -> None:
    def move(file: Path) -> None:
        source.replace(file)

    write_atomically(place, move, kind, overwrite=overwrite)


def _golden_of(model: nn.Module) -> Golden:
    facts = origin(model)
    return facts.golden if checksum(model) == facts.checksum else make_golden_by_model(model)


def _check(path: Path, golden: Golden) -> Comparison:
    """Run a module on the golden inputs and compare.

    Raises:
        K2TError: it does not compute what the converted model does.
    """
    found = compare(
        run_source(path, [x.numpy() for x in golden.inputs]),
        [y.numpy() for y in golden.outputs],
        golden.roundings or (golden.rounding,) * len(golden.outputs),
        resolve_tolerance(None, None),
        device="cpu",
        against="golden",
    )
    if found.judged and not found.ok:
        how = found.failure or f"max abs error {found.max_abs_error:.1e}"
        raise K2TError(
            f"the source does not compute what the converted model does ({how}); nothing was "
            "written",
            "please report it",
        )
    return found
