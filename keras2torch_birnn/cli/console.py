"""Write to the console: results, messages, errors as lines."""

from __future__ import annotations

import json
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
        self, data: Mapping[str, Any], text: str, *, show: Callable[[str], None] | None = None
    ) -> None:
        """Print a result: as one JSON object or as text, by ``show`` (stdout)."""
        (show or print_line)(self.format(data, indent=2) if self.as_json else text)

    @staticmethod
    def format(data: Mapping[str, Any], indent: int | None = None) -> str:
        """Return one JSON object with the version of its schema, the verdict and the exit code."""
        ok = data.get("ok", True)
        return json.dumps({"schema": SCHEMA, "ok": ok, "exit": int(not ok), **data}, indent=indent)

    def show_progress(self, what: str) -> AbstractContextManager[Bar | Hidden]:
        """Show a bar while long work runs, unless it is not wanted."""
        return show_progress(what, quiet=self.quiet or self.as_json)


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
    """Return an error of the package for any error: too little memory, or a bug."""
    if isinstance(error, K2TError):
        return error
    if isinstance(error, MemoryError):
        return InvalidModelFileError("the model does not fit into memory", "refused")
    if lacks_memory(error):
        return UsageError("there is not enough memory", ADVICE)
    text = printable(str(error).strip().splitlines()[0] if str(error).strip() else "")
    return K2TError(f"a bug in k2t: {type(error).__name__}: {text}", "--debug shows where")


def print_line(line: str) -> None:
    """Print one line of the result on stdout."""
    try:
        typer.echo(_encodable(line, sys.stdout))
    except OSError as error:
        # The rest of Python's buffer must not fail again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"cannot be written ({error.strerror})", file="standard output") from None


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


def print_stderr(text: str) -> None:
    """Print to stderr; ignore a closed pipe."""
    try:
        typer.echo(_encodable(text, sys.stderr), err=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def count_words(count: int, noun: str) -> str:
    """Write a number of things: "1 path", "3 paths"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
