"""Write to the console: results, messages, errors as lines.

Every text goes through ``print_line`` or ``print_stderr``, which escape what a model file can have
put into it: ends of lines, commands to the terminal, marks that turn the direction of writing.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

import typer

from keras2torch_birnn.cli.progress_bar import Bar, Hidden, show_progress
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    K2TError,
    OutputError,
    UsageError,
    escape_controls,
    printable,
)
from keras2torch_birnn.torch_import import ADVICE, lacks_memory

# Of everything that ``--json`` prints: docs/cli.md describes it.
SCHEMA = 1


@dataclass(frozen=True)
class Output:
    """How a command prints: the options that all of them have."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def print_notes(self, notes: Iterable[str]) -> None:
        """Print notes to stderr, unless they are not wanted."""
        for note in () if self.quiet else notes:
            print_message("note", note)

    def print_result(
        self,
        data: Mapping[str, Any],
        lines: Iterable[str] = (),
        *,
        show: Callable[[str], None] | None = None,
    ) -> None:
        """Print a result: as one JSON object or as lines of text, by ``show`` (stdout)."""
        printed = self.format(data, indent=2).split("\n") if self.as_json else lines
        for line in printed:
            (show or print_line)(line)

    @staticmethod
    def format(data: Mapping[str, Any], indent: int | None = None) -> str:
        """Return one JSON object with the version of its schema, the verdict and the exit code.

        It is ASCII, and no text in it holds a line's end. JSON has no numbers that are not finite:
        they are the texts "NaN", "Infinity" and "-Infinity".
        """
        ok = data.get("ok", True)
        whole = {"schema": SCHEMA, "ok": ok, "exit": int(not ok), **data}
        return json.dumps(_without_infinities(whole), indent=indent, allow_nan=False)

    def show_progress(self, what: str) -> AbstractContextManager[Bar | Hidden]:
        """Show a bar while long work runs, unless it is not wanted."""
        return show_progress(escape_controls(what), quiet=self.quiet or self.as_json)


@contextmanager
def errors_as_lines(debug: bool, *, as_json: bool = False) -> Iterator[None]:
    """Print every error as one line for each problem, and end with its exit code.

    as_json: print them on stdout as well, as one JSON object.
    """
    try:
        yield
    except typer.Exit:
        raise
    except BrokenPipeError:
        # The reader has closed the pipe (``k2t inspect m.h5 | head -1``): this is not an error.
        raise typer.Exit(0) from None
    except Exception as error:
        if debug:
            raise
        known = known_error(error)
        print_error(known)
        if as_json:
            print_line(Output.format(describe_failure(known)))
        raise typer.Exit(known.exit_code) from None


def describe_failure(error: K2TError) -> dict[str, Any]:
    """Return an error as data: its exit code, and every problem."""
    return {"ok": False, "exit": error.exit_code, "problems": error.to_dicts()}


def known_error(error: Exception) -> K2TError:
    """Turn any error into one of the package: too little memory, or a bug."""
    if isinstance(error, K2TError):
        return error
    if isinstance(error, MemoryError):
        return InvalidModelFileError("the model does not fit into memory", "refused")
    if lacks_memory(error):
        return UsageError("there is not enough memory", ADVICE)
    if isinstance(error, OSError) and error.filename is not None:  # a name that is too long, say
        return InvalidModelFileError(
            f"cannot be opened ({error.strerror})", "check the name", file=str(error.filename)
        )
    if isinstance(error, OSError) and error.strerror:  # of no file that was named
        return OutputError(
            f"the system refuses to go on ({printable(error.strerror)})",
            "check the room and the rights, those of the folder for temporary files (TMPDIR), too",
        )
    text = printable(str(error).strip().splitlines()[0] if str(error).strip() else "")
    return K2TError(f"a bug in k2t: {type(error).__name__}: {text}", "--debug shows where")


def _without_infinities(value: Any) -> Any:
    """Write numbers that are not finite as texts, wherever they are in data."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _without_infinities(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(one) for one in value]
    return value


def print_line(line: str, colour: str = "") -> None:
    """Print one line of the result on stdout, whatever it holds: controls are escaped."""
    text = escape_controls(line)
    try:
        typer.echo(_encodable(_paint(text, colour) if colour else text, sys.stdout))
    except OSError as error:
        # The rest of Python's buffer must not fail again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"cannot be written ({error.strerror})", file="standard output") from None


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of the result on stdout."""
    for line in lines:
        print_line(line)


def _paint(text: str, colour: str) -> str:
    """Colour a text for stdout, if that is a terminal and NO_COLOR is not set."""
    stream = sys.stdout
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or stream is None or not stream.isatty():
        return text
    return typer.style(text, fg=colour, bold=True)


def _encodable(text: str, stream: TextIO | None) -> str:
    """Escape what the encoding of a stream lacks: a path in a pipe of Windows, say."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def print_message(kind: str, line: str) -> None:
    """Print a note, a warning or an error as ``k2t: KIND: LINE`` to stderr."""
    print_stderr(f"k2t: {kind}: {line}")


def print_error(error: K2TError) -> None:
    """Print one line to stderr for each problem of an error."""
    for line in error.lines():
        print_message("error", line)


def print_stderr(line: str) -> None:
    """Print one line to stderr, whatever it holds; ignore a closed pipe."""
    try:
        typer.echo(_encodable(escape_controls(line), sys.stderr), err=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def count_words(count: int, noun: str) -> str:
    """Write a number of things: "1 path", "3 paths"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
