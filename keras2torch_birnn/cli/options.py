"""Arguments and options that several commands have."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from keras2torch_birnn.cli.console import Output, errors_as_lines
from keras2torch_birnn.cli.wrong_calls import checking_files
from keras2torch_birnn.errors import OutputError, escape_controls, printable
from keras2torch_birnn.schema.custom_layers import REGISTERED
from keras2torch_birnn.suggestions import unknown_value

DTYPES = ("float32", "float64")
DEVICES = ("cpu", "cuda", "xpu", "mps", "all")
_STDOUT = Path("/dev/stdout")

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
        help="Architecture for files that hold only weights: model.to_json(), or a model with it.",
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py|NAME",
        help="Converters for layers that k2t lacks: a Python file (it is run!) or a shipped name "
        "(see k2t layers); repeatable.",
    ),
]


def one_of(flag: str, values: Iterable[str], help: str, metavar: str = "") -> Any:
    """Make an option that is one of these values; the command refuses others."""
    return typer.Option(flag, metavar=metavar or "|".join(values), help=help)


def _layer(flag: str, where: str) -> Any:
    return typer.Option(flag, metavar="LAYER", help=f"{where} of this layer; repeatable.")


Dtype = Annotated[str | None, one_of("--dtype", DTYPES, "Instead of the file's dtype.")]
First = Annotated[list[str] | None, _layer("--from", "Start at the inputs")]
Last = Annotated[list[str] | None, _layer("--to", "End at the outputs")]
Devices = Annotated[list[str] | None, one_of("--device", DEVICES, "Where it runs; repeatable.")]
# Every command has these; ``with_common_options`` adds them.
_COMMON = {
    "as_json": typer.Option("--json", help="Print JSON, also for errors."),
    "quiet": typer.Option("--quiet", "-q", help="Print no notes and no progress."),
    "verbose": typer.Option("--verbose", "-v", help="Print more details."),
    "debug": typer.Option("--debug", help="Show tracebacks."),
}


def with_common_options(run: Callable[..., None], name: str = "") -> Callable[..., None]:
    """Add the options of every command to ``run``, which gets an ``Output`` as first argument.

    Errors of ``run``, the command ``name``, become lines, or JSON, and exit codes.
    """

    def command(**arguments: Any) -> None:
        as_json, quiet, verbose, debug = (arguments.pop(name) for name in _COMMON)
        output = Output(as_json, quiet, verbose)
        plugins = arguments.get("plugin") or ()
        with errors_as_lines(debug, as_json=as_json), checking_files(name, arguments):
            try:
                run(output, **arguments)
            except Exception:  # it may be why
                output.print_notes(_describe_idle(plugins))
                raise
            output.print_notes(_describe_idle(plugins))

    signature = inspect.signature(run, eval_str=True)
    own = list(signature.parameters.values())[1:]
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, kind, default=False, annotation=Annotated[bool, option])
        for name, option in _COMMON.items()
    ]
    parameters = [one.replace(kind=kind) for one in own] + added
    for info in (info for one in parameters for info in get_args(one.annotation)[1:]):
        info.readable = False  # typer would end with 2; opening the file says why, and ends with 3
    changed: Any = command
    changed.__name__, changed.__doc__ = run.__name__, run.__doc__
    changed.__signature__ = signature.replace(parameters=parameters)
    changed.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _describe_idle(plugins: Iterable[str]) -> Iterator[str]:
    """Yield a note for each plugin that ran and registered nothing."""
    for name in plugins:
        if REGISTERED.loaded.get(name) is False:
            yield f"plugin {escape_controls(name)} registers nothing; see docs/plugins.md"


def check_dtype(dtype: str | None) -> None:
    """Refuse a dtype that no model can have.

    Raises:
        UsageError: it is another one.
    """
    if dtype not in (None, *DTYPES):
        raise unknown_value(f"--dtype {printable(dtype)}", DTYPES, dtype)


def file_named(name: str, shown: str = "OUT") -> Path:
    """Return the path; ``-`` is standard output. Refuse a folder (``Path`` drops a last slash).

    Raises:
        OutputError: it is the name of a folder, or there is no file for standard output.
    """
    if name == "-":
        if not _STDOUT.exists():
            raise OutputError(
                "this system has no file for standard output", "name a file", file=name
            )
        return _STDOUT
    if name.endswith((os.sep, os.altsep or os.sep)) or not name:
        raise OutputError("is the name of a folder", "name a file", file=name or shown)
    return Path(name)
