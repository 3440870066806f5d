"""Write to the console: results, messages, errors as lines.

Every text goes through ``print_line`` or ``print_stderr``, which escape what a model file can have
put into it: ends of lines, commands to the terminal, marks that turn the direction of writing.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, TextIO

import typer

from keras2torch_birnn.comparison.html import Table
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    K2TError,
    OutputError,
    UsageError,
    escape_controls,
    printable,
)
from keras2torch_birnn.progress import Unit, reporting_to
from keras2torch_birnn.torch_import import ADVICE, lacks_memory

if TYPE_CHECKING:
    from rich.progress import Progress


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


def print_columns(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[int] = ()
) -> None:
    """Print rows under their heads, as wide as the terminal (80 in a pipe), or as its names need.

    Texts are folded at spaces; a name is never broken, so that it can be searched for and copied.
    Columns that are empty in every row are left out. numbers: the columns that are aligned to the
    right.
    """
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    used = [at for at in range(len(head)) if not rows or any(row[at] for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 1, 0, 0))
    for at in used:
        justify: Any = "right" if at in numbers else "left"
        one_word = not any(" " in row[at].strip() for row in rows)
        table.add_column(Text(head[at]), justify=justify, no_wrap=one_word, overflow="fold")
    for row in rows:
        table.add_row(*(Text(escape_controls(row[at])) for at in used))
    console = Console(file=StringIO(), width=10_000, color_system=None)
    least = Measurement.get(console, console.options, table).minimum
    console.width = max(shutil.get_terminal_size().columns, least)
    with console.capture() as printed:
        console.print(table)
    for line in printed.get().splitlines():
        print_line(line.rstrip())


def print_table(table: Table) -> None:
    """Print a table of a report."""
    print_columns(table.head, table.rows, numbers=table.numbers)


class Bar:
    """Bar of rich on stderr, to which the work reports."""

    def __init__(self, what: str, progress: Progress) -> None:
        self._what, self._progress = what, progress
        self._task = progress.add_task(what, total=None)

    def begin(self, phase: str, total: int | None, unit: Unit) -> None:
        """Show the next phase, with a clock of its own."""
        self._progress.remove_task(self._task)
        text = f"{self._what}: {phase}" if phase else self._what
        self._task = self._progress.add_task(text, total=total or None)

    def advance(self, amount: int) -> None:
        """Show that more is done."""
        self._progress.advance(self._task, amount)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bar away while lines are printed."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()


class Hidden:
    """No bar: what is shown in a pipe."""

    def hidden(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()


@contextmanager
def show_progress(what: str, *, quiet: bool = False) -> Iterator[Bar | Hidden]:
    """Show a bar while the work inside runs, if stderr is a terminal whose cursor moves."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield Hidden()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=console.is_dumb_terminal,
    ) as progress:
        bar = Bar(what, progress)
        with reporting_to(bar):
            yield bar
