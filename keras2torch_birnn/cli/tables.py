"""Tables and lines that fit the terminal, and colours where there is one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

from keras2torch_birnn.cli.console import print_line
from keras2torch_birnn.errors import escape_controls, printable

# The least that is left of a column, and the spaces between two, and before what goes on.
_NARROW, _GAP, _INDENT = 9, 1, 4
# Where a name that is too long is broken: after these; then after these, too; then anywhere.
_PARTS = (re.compile(r"(?<=[/,])(?=.)"), re.compile(r"(?<=[/,._])(?=.)"))

Rows = Sequence[Sequence[str]]


def print_columns(
    head: Sequence[str],
    rows: Rows,
    *,
    folds: Sequence[int],
    numbers: Collection[int] = (),
    split: int | None = None,
) -> None:
    """Print rows under their heads, within the width of the terminal (80 in a pipe).

    Columns that are empty in every row are left out.

    folds: the columns that are folded where the width is too small, the first one first; where
    that is not enough, names in them are broken, the longest ones first.
    numbers: the columns that are aligned to the right.
    split: where a row fits in no line, this column and those after it are in a second one.
    """
    rows = [tuple(map(escape_controls, row)) for row in rows]
    width = _terminal_width()
    used = [at for at in range(len(head)) if not rows or any(row[at] for row in rows)]
    parts = [used]
    if split is not None and _least([head, *rows], used, folds) > width:
        parts = [[at for at in used if at < split], [at for at in used if at >= split]]
    tables = [
        _layout([head, *rows], part, folds, numbers, width - _INDENT * bool(number))
        for number, part in enumerate(parts)
    ]
    for lines in zip(*tables, strict=True):  # one row of each part
        for number, some in enumerate(lines):
            for line in some:
                print_line(" " * (_INDENT * bool(number)) + line)


def _layout(
    rows: Rows, used: Sequence[int], folds: Sequence[int], numbers: Collection[int], width: int
) -> list[list[str]]:
    """Return the lines of each row, in these columns."""
    widths = {at: max(_cells_of(row[at]) for row in rows) for at in used}
    order = list(folds)
    for least in _least_widths(rows, used):
        for at in order:
            if at in widths:
                excess = sum(widths.values()) + _GAP * (len(widths) - 1) - width
                widths[at] = min(widths[at], max(widths[at] - excess, least[at]))
        # Names are broken only where they must be, and then the longest ones.
        order.sort(key=lambda at: widths.get(at, 0), reverse=True)
    found = []
    for row in rows:
        folded = [fold(row[at], widths[at]) for at in used]
        lines = []
        for cells in zip_longest(*folded, fillvalue=""):
            padded = [
                _pad(cell, widths[at], right=at in numbers)
                for at, cell in zip(used, cells, strict=True)
            ]
            lines.append((" " * _GAP).join(padded).rstrip())
        found.append(lines)
    return found


def _least_widths(rows: Rows, used: Sequence[int]) -> Iterator[dict[int, int]]:
    """Yield how narrow each column may become: no word broken; then parts of names; then any."""
    for pattern in (None, *_PARTS):
        yield {
            at: max(
                (_cells_of(part) for row in rows for part in _parts(row[at], pattern)), default=0
            )
            for at in used
        }
    heads = {at: max(map(_cells_of, rows[0][at].split()), default=0) for at in used}
    yield {at: max(_NARROW, heads[at]) for at in used}


def _parts(text: str, pattern: re.Pattern[str] | None) -> list[str]:
    words = text.split()
    return words if pattern is None else [part for word in words for part in pattern.split(word)]


def _least(rows: Rows, used: Sequence[int], folds: Collection[int]) -> int:
    """Return how wide the rows are at least, if no word is broken."""
    words = next(_least_widths(rows, used))
    whole = {at: max(_cells_of(row[at]) for row in rows) for at in used}
    return sum((words if at in folds else whole)[at] for at in used) + _GAP * (len(used) - 1)


def fold(text: str, width: int) -> list[str]:
    """Return the lines of a text: broken at spaces, or in names that are longer than a line.

    Spaces at the start are before every line.
    """
    start = len(text) - len(text.lstrip(" "))
    room = max(1, width - start)
    lines = [""]
    for word in text[start:].split(" "):
        for number, part in enumerate(_break_word(word, room)):
            space = " " if lines[-1] and not number else ""
            if _cells_of(lines[-1] + space + part) <= room:
                lines[-1] += space + part
            else:
                lines.append(part)
    return [" " * start + line for line in lines]


def _break_word(word: str, width: int) -> list[str]:
    """Break a word that is longer than a line, after separators where they suffice."""
    if _cells_of(word) <= width:
        return [word]
    for pattern in _PARTS:
        parts = pattern.split(word)
        if max(map(_cells_of, parts)) <= width:
            return parts
    return [word[at : at + width] for at in range(0, len(word), max(1, width))]


def _pad(text: str, width: int, *, right: bool) -> str:
    space = " " * (width - _cells_of(text))
    return space + text if right else text + space


def _cells_of(text: str) -> int:
    """Return the width of a text on a terminal, where some letters are two wide."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _terminal_width() -> int:
    return shutil.get_terminal_size().columns


def print_folded(lines: Iterable[str]) -> None:
    """Print lines of text within the width of the terminal; what goes on is indented."""
    width = max(_terminal_width(), 2 * _INDENT)
    for line in map(escape_controls, lines):
        first = fold(line, width)[0]
        print_line(first)
        rest = line[len(first) :].lstrip(" ")
        if rest:
            start = _INDENT + len(line) - len(line.lstrip(" "))
            for more in fold(" " * start + rest, width):
                print_line(more)


def format_cell(value: Any) -> str:
    """Format a value of a table: a shape as ``(-,3)``, several with commas."""
    if isinstance(value, tuple | list) and value and isinstance(value[0], tuple | list):
        return ", ".join(map(format_cell, value))
    if isinstance(value, tuple | list):
        return f"({','.join('-' if v is None else str(v) for v in value)})"
    return "" if value is None else printable(value)
