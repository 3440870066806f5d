"""Tables as wide as the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from io import StringIO
from typing import Any

from keras2torch_birnn.cli.console import print_line
from keras2torch_birnn.errors import escape_controls
from keras2torch_birnn.html import Table


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
