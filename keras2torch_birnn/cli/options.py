"""Arguments and options that several commands have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from keras2torch_birnn.errors import OutputError, UsageError, printable

DTYPES = ("float32", "float64")

ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A Keras model: a file, a SavedModel folder, a checkpoint or model.json.",
    ),
]
ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="ARCH.json",
        help="Architecture (model.to_json()) of a file with weights only.",
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py|NAME",
        help="Converters for custom layers: a Python file, which is run, or a shipped name.",
    ),
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="float32 or float64, instead of the file's dtype.")
]
Masked = Annotated[
    str | None,
    typer.Option(
        "--masked-steps",
        help="Output of Bidirectional at masked steps, if a note asks: zeros or previous.",
    ),
]
First = Annotated[
    list[str] | None,
    typer.Option("--from", metavar="LAYER", help="Start at the inputs of this layer; repeatable."),
]
Last = Annotated[
    list[str] | None,
    typer.Option("--to", metavar="LAYER", help="End at the outputs of this layer; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def check_dtype(dtype: str | None) -> None:
    """Refuse a dtype that no model can have.

    Raises:
        UsageError: it is another one.
    """
    if dtype not in (None, *DTYPES):
        raise UsageError(f"--dtype {printable(dtype)}: {' or '.join(DTYPES)} is expected")


def file_named(name: str, shown: str = "OUT") -> Path:
    """Return the path; refuse the name of a folder (``Path`` drops a last slash).

    Raises:
        OutputError: it is the name of a folder.
    """
    if name.endswith((os.sep, os.altsep or os.sep)) or not name:
        raise OutputError("is the name of a folder", "name a file", file=name or shown)
    return Path(name)
