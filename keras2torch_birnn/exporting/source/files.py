"""The target ``.py``: a module of plain PyTorch source, and its weights beside it."""

from __future__ import annotations

import ast
import os
from pathlib import Path

from safetensors.torch import save_file
from torch import fx

from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.exporting.runtime_child import open_module
from keras2torch_birnn.exporting.source.module_text import FIRST_LINE
from keras2torch_birnn.exporting.source.write_source import SourceFiles, write_source
from keras2torch_birnn.exporting.target import EXPORT, Session, Target
from keras2torch_birnn.readers.input_files import Window
from keras2torch_birnn.saving.atomic import FileKind
from keras2torch_birnn.saving.checkpoint_kind import read_safetensors_format
from keras2torch_birnn.spec import ModelSpec

_FORMAT = "plain PyTorch source of keras2torch_birnn/1"


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


class Source(Target):
    """Plain PyTorch source, and its weights beside it."""

    kind = SOURCE
    companions = (WEIGHTS,)
    alone = True
    runtime = "torch"

    def describe_other(self, path: Path) -> tuple[str, str] | None:
        """Describe Python code that does not define what ``open`` calls."""
        try:
            parts = ast.parse(path.read_bytes()).body
        except (SyntaxError, ValueError) as error:
            return f"is no Python code ({printable(error)})", EXPORT
        if any(isinstance(one, ast.FunctionDef) and one.name == "load" for one in parts):
            return None
        return (
            "Python code without the function load, which every export has",
            f"{EXPORT}; of a port of your own: k2t compare MODEL FILE.py:NAME",
        )

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
        return open_module(path)


TARGET = Source()
