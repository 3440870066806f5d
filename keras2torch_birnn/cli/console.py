"""Write to the console: results, messages, tables, a progress bar, errors as lines."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from keras2torch_birnn.errors import (
    InvalidModelFileError,
    K2TError,
    OutputError,
    UsageError,
    printable,
)
from keras2torch_birnn.torch_import import ADVICE, lacks_memory

UNEXPECTED = 70
# Seconds before the bar appears; seconds between its moves; its width and that of its block.
PATIENCE, TICK, WIDTH, BLOCK = 1.0, 0.1, 24, 6


@contextmanager
def errors_as_lines(debug: bool) -> Iterator[None]:
    """Print every error as one line for each problem, and end with its exit code."""
    try:
        yield
    except typer.Exit:
        raise
    except BrokenPipeError:
        # The reader has closed the pipe (``k2t inspect m.h5 | head -1``): this is not an error.
        raise typer.Exit(0) from None
    except K2TError as error:
        if debug:
            raise
        for line in error.lines():
            print_message("error", line)
        raise typer.Exit(error.exit_code) from None
    except MemoryError:
        if debug:
            raise
        print_message("error", "the model does not fit into memory; refused")
        raise typer.Exit(InvalidModelFileError.exit_code) from None
    except Exception as error:
        if debug:
            raise
        if lacks_memory(error):
            print_message("error", f"there is not enough memory; {ADVICE}")
            raise typer.Exit(UsageError.exit_code) from None
        text = printable(str(error).strip().splitlines()[0] if str(error).strip() else "")
        print_message("error", f"a bug in k2t: {type(error).__name__}: {text}; --debug shows where")
        raise typer.Exit(UNEXPECTED) from None


def print_line(line: str) -> None:
    """Print one line of the result on stdout."""
    try:
        typer.echo(line)
    except OSError as error:
        # The rest of Python's buffer must not fail again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"cannot be written ({error.strerror})", file="standard output") from None


def print_message(kind: str, line: str) -> None:
    """Print a note, a warning or an error as ``k2t: KIND: LINE`` to stderr."""
    print_stderr(f"k2t: {kind}: {line}")


def print_stderr(text: str) -> None:
    """Print to stderr; ignore a closed pipe."""
    try:
        typer.echo(text, err=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@contextmanager
def show_progress(what: str) -> Iterator[None]:
    """Show a moving bar while long work runs: on a terminal, never in a pipe."""
    # (sys.stderr is None where the caller closed it.)
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    done = threading.Event()
    drawing = threading.Thread(target=_draw, args=(what, done), daemon=True)
    drawing.start()
    try:
        yield
    finally:
        done.set()
        drawing.join()


def _draw(what: str, done: threading.Event) -> None:
    started, step, line = time.monotonic(), 0, ""
    wait = PATIENCE
    while not done.wait(wait):
        gap = abs((step % (2 * (WIDTH - BLOCK))) - (WIDTH - BLOCK))
        bar = " " * gap + "#" * BLOCK + " " * (WIDTH - BLOCK - gap)
        line = f"{what} [{bar}] {time.monotonic() - started:.0f} s"
        sys.stderr.write(f"\r{line}")
        sys.stderr.flush()
        step, wait = step + 1, TICK
    sys.stderr.write(f"\r{' ' * len(line)}\r" if line else "")
    sys.stderr.flush()


def print_json(data: Any) -> None:
    """Print data as JSON on stdout."""
    print_line(json.dumps(data, indent=2))


def format_cell(value: Any) -> str:
    """Format a value of a table: a shape as ``(-, 3)``, several with commas."""
    if isinstance(value, tuple | list) and value and isinstance(value[0], tuple | list):
        return ", ".join(map(format_cell, value))
    if isinstance(value, tuple | list):
        return f"({', '.join('-' if v is None else str(v) for v in value)})"
    return "" if value is None else printable(value)


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows under their heads, in columns."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        print_line(line.rstrip())
