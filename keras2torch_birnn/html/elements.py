"""Make elements of a page: ``make`` escapes controls, ``ElementTree`` what is special in HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

from keras2torch_birnn.errors import escape_controls

Element = ElementTree.Element


def make(tag: str, text: str = "", attributes: dict[str, str] | None = None) -> Element:
    """Make an element with a text."""
    safe = {key: escape_controls(value) for key, value in (attributes or {}).items()}
    element = Element(tag, safe)
    element.text = escape_controls(text)
    return element


def group(tag: str, kind: str, parts: Iterable[Element]) -> Element:
    """Make an element of the class ``kind`` that holds others."""
    element = make(tag, attributes={"class": kind} if kind else None)
    element.extend([*parts])
    return element


def make_section(title: str, *content: Element) -> Element:
    """Make a section with a title."""
    return group("section", "", (make("h2", title), *content))


def make_cell(text: str, kind: str = "") -> Element:
    """Make a cell; ``kind``: "code" for names, "number" for figures, to be aligned."""
    return make("td", text, {"class": kind} if kind else None)


def make_table(
    columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str | Element]]
) -> Element:
    """Make a table that scrolls by itself where it is too wide.

    columns: the head and the kind of each; a row has texts or whole cells.
    """
    first = group("tr", "", (make("th", head, {"class": kind}) for head, kind in columns))
    body = make("tbody")
    for row in rows:
        cells = (
            make_cell(cell, kind) if isinstance(cell, str) else cell
            for cell, (_, kind) in zip(row, columns, strict=True)
        )
        body.append(group("tr", "", cells))
    return group("div", "scroll", [group("table", "", [group("thead", "", [first]), body])])
