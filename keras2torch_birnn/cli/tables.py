"""Tables that fit the terminal, and colours where there is one."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import typer

from keras2torch_birnn.cli.console import print_line
from keras2torch_birnn.errors import printable

# What is left of a column that is folded, and the space between two.
_NARROW, _GAP = 9, 1


def print_columns(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    folds: Sequence[int],
    numbers: Collection[int] = (),
) -> None:
    """Print rows under their heads, within the width of the terminal (80 in a pipe).

    folds: the columns that are folded where the width is too small, the first one first; with
    none of them lines may be longer.
    numbers: the columns that are aligned to the right.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = shutil.get_terminal_size().columns
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    words = [_longest_word(row[at] for row in (head, *rows)) for at in range(len(head))]
    for least in (words, [_NARROW] * len(head)):  # names are broken only where they must be
        for at in folds:
            excess = sum(widths) + _GAP * (len(widths) - 1) - width
            widths[at] = min(widths[at], max(widths[at] - excess, least[at]))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="")
    for at, title in enumerate(head):
        side: Any = "right" if at in numbers else "left"
        table.add_column(Text(title), justify=side, overflow="fold", width=widths[at])
    for row in rows:
        table.add_row(*map(Text, row))
    text = io.StringIO()
    full = sum(widths) + _GAP * len(widths)
    Console(file=text, width=max(width, full), color_system=None, legacy_windows=False).print(table)
    for line in text.getvalue().splitlines():
        print_line(line.rstrip())


def _longest_word(texts: Iterable[str]) -> int:
    return max((len(word) for text in texts for word in text.split()), default=0)


def paint(text: str, colour: str) -> str:
    """Colour a text for stdout, if that is a terminal and NO_COLOR is not set."""
    stream = sys.stdout
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or stream is None or not stream.isatty():
        return text
    return typer.style(text, fg=colour, bold=True)


def format_cell(value: Any) -> str:
    """Format a value of a table: a shape as ``(-,3)``, several with commas."""
    if isinstance(value, tuple | list) and value and isinstance(value[0], tuple | list):
        return ", ".join(map(format_cell, value))
    if isinstance(value, tuple | list):
        return f"({','.join('-' if v is None else str(v) for v in value)})"
    return "" if value is None else printable(value)
