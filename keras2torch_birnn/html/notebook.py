"""Reports in a cell of a notebook: a verdict and tables, as in the report, without any script."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree

from keras2torch_birnn.html.elements import Element, group, make
from keras2torch_birnn.html.style import CELL_STYLE

# The words of a verdict, by the class that gives its colour.
VERDICTS = {"ok": "EQUAL", "wrong": "NOT EQUAL", "unknown": "NOT JUDGED"}


def make_verdict(kind: str, words: str, sentence: str) -> Element:
    """Make the box of a verdict. kind: a key of ``VERDICTS``."""
    badge = make("strong", words, {"class": "badge"})
    return group("div", f"verdict {kind}", (badge, make("p", sentence)))


def show_in_cell(parts: Iterable[Element]) -> str:
    """Return HTML of elements for a notebook, with colours of their own."""
    style = make("style")
    style.text = CELL_STYLE  # our own, with ends of lines
    cell = group("div", "k2t", (style, *parts))
    return ElementTree.tostring(cell, encoding="unicode", method="html")
