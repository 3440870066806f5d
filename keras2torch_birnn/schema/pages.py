"""Tables of other packages, by the pages that the schema has: one family of layers, one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TypeVar

Row = TypeVar("Row")


class Pages(Mapping[str, Row]):
    """The rows of all pages of a package, by class; a page is imported when a row of it is read.

    pages: class -> page, as in the schema. table: the name of each page's own table.
    """

    def __init__(self, package: str, table: str, pages: Mapping[str, str]) -> None:
        """Take note of where the rows are."""
        self._package, self._table, self._pages = package, table, pages

    def __getitem__(self, name: str) -> Row:
        """Return the row of a class."""
        page = import_module(f"{self._package}.{self._pages[name]}")
        row: Row = getattr(page, self._table)[name]
        return row

    def __iter__(self) -> Iterator[str]:
        """Iterate over the classes."""
        return iter(self._pages)

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self._pages)
