"""The target ``.py``: a module of plain PyTorch source, and its weights beside it."""

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
from torch import fx

from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.exporting.source.module_text import FIRST_LINE
from keras2torch_birnn.exporting.source.write_source import SourceFiles, write_source
from keras2torch_birnn.exporting.target import Session, Target
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.saving.atomic import FileKind
from keras2torch_birnn.saving.checkpoint_kind import read_safetensors_format
from keras2torch_birnn.spec import Array, ModelSpec

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


class Source(Target):
    """Plain PyTorch source, and its weights beside it."""

    kind = SOURCE
    companions = (WEIGHTS,)

    @property
    def runtime(self) -> str:
        """Torch, in a process without this package."""
        return "torch"

    def write(self, model: fx.GraphModule, spec: ModelSpec, path: Path) -> tuple[str, ...]:
        """Write the module and its weights.

        Raises:
            UnsupportedLayerError: lists everything that has no source form.
        """
        source = write_source(model, spec)
        save_source(source, path)
        return source.notes

    def open(self, path: Path) -> Session:
        """Return a function that runs the module: it is Python code, which this executes."""

        def session(arrays: Sequence[Array]) -> Sequence[Array]:
            found = run_source(path, arrays)
            if isinstance(found, str):
                raise RuntimeError(found)
            return found

        return session


TARGET = Source()
