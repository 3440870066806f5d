"""Verdicts and tables as HTML: for cells of notebooks, and for the page of ``k2t verify``.

Every text is escaped, whatever a model file put into it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

from keras2torch_birnn.errors import escape_controls, printable


@dataclass(frozen=True)
class Table:
    """Rows of texts under their heads, for a terminal, a notebook or a page.

    numbers: the columns that are aligned to the right.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Result in a word and in a sentence. kind, which gives the colour: ok, wrong or unknown."""

    kind: str
    words: str
    sentence: str


STYLE = """
.k2t { color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --page: #fff; --line: #d1d9e0;
  --ok: #1a7f37; --wrong: #b00020; --unknown: #8a6d00; font: 15px/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--page); padding: .6rem; }
@media (prefers-color-scheme: dark) { .k2t { --text: #e6e9ee; --soft: #9ba5b1; --page: #14171c;
  --line: #39414b; --ok: #4ac26b; --wrong: #ff6b81; --unknown: #e0b83c; } }
.k2t .ok { color: var(--ok); } .k2t .wrong { color: var(--wrong); }
.k2t .unknown { color: var(--unknown); }
.k2t h1, .k2t p { overflow-wrap: anywhere; }
.k2t .scroll { overflow-x: auto; }
.k2t table { border-collapse: collapse; font-size: .85rem; }
.k2t th, .k2t td { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0;
  border-bottom: 1px solid var(--line); }
.k2t th { color: var(--soft); } .k2t .number { text-align: right; white-space: nowrap; }
@media (max-width: 68rem) { .k2t td { overflow-wrap: anywhere; }
  .k2t td:first-child { min-width: 3.5rem; }
  .k2t th, .k2t td { padding-right: .4rem; font-size: .75rem; } }
"""


def format_cell(value: Any) -> str:
    """Format a value of a table: a shape as ``(-,3)``, several with commas."""
    if isinstance(value, tuple | list) and value and isinstance(value[0], tuple | list):
        return ", ".join(map(format_cell, value))
    if isinstance(value, tuple | list):
        return f"({','.join('-' if v is None else str(v) for v in value)})"
    return "" if value is None else printable(value)


def make_text(tag: str, text: object, kind: str = "") -> str:
    """Return an element of a class that holds a text."""
    start = f'<{tag} class="{kind}">' if kind else f"<{tag}>"
    return f"{start}{escape(escape_controls(str(text)))}</{tag}>"


def make_verdict(verdict: Verdict) -> str:
    """Return a verdict as a paragraph."""
    words = make_text("strong", verdict.words, verdict.kind)
    return f"<p>{words} {make_text('span', verdict.sentence)}</p>"


def make_table(table: Table) -> str:
    """Return a table that scrolls by itself where it is too wide."""

    def make_row(tag: str, texts: Iterable[str]) -> str:
        kinds = ("number" if at in table.numbers else "" for at in range(len(table.head)))
        cells = (make_text(tag, one, kind) for one, kind in zip(texts, kinds, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    rows = "\n".join(make_row("td", row) for row in table.rows)
    return (
        f'<div class="scroll"><table><thead>{make_row("th", table.head)}</thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )


def show_in_cell(verdict: Verdict, tables: Iterable[Table]) -> str:
    """Return HTML for a notebook, with colours of its own and without a script."""
    parts = (make_verdict(verdict), *map(make_table, tables))
    return f'<div class="k2t"><style>{STYLE}</style>\n{"".join(parts)}</div>'
