"""Tables of other packages, by the pages that the schema has: one family of layers, one page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from itertools import chain
from typing import TypeVar

Row = TypeVar("Row")
RANKS = (1, 2, 3)


def for_ranks(pattern: str, row: Callable[[int], Row]) -> dict[str, Row]:
    """Return the rows of the classes for one axis, two and three; ``pattern``: {} is the number."""
    return {pattern.format(rank): row(rank) for rank in RANKS}


def names_for_ranks(words: str) -> tuple[str, ...]:
    """Return the classes in a text; one with {} in its name is three, see ``for_ranks``."""
    return tuple(name for word in words.split() for name in dict.fromkeys(map(word.format, RANKS)))


class Pages(Mapping[str, Row]):
    """The rows of all pages of a package, by class; a page is imported when a row of it is read.

    pages: class -> page, as in the schema. table: the name of each page's own table. at_hand: rows
    that need no import.
    """

    def __init__(
        self, package: str, table: str, pages: Mapping[str, str], at_hand: Mapping[str, Row] = {}
    ) -> None:
        """Take note of where the rows are."""
        self._package, self._table, self._pages = package, table, pages
        self._at_hand = at_hand

    def __getitem__(self, name: str) -> Row:
        """Return the row of a class."""
        return self.find_table(name)[name]

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a row of a class."""
        return name in self._pages or name in self._at_hand

    def find_table(self, name: str) -> Mapping[str, Row]:
        """Return the table that holds the row of a class, of all classes on its page."""
        if name in self._at_hand:
            return self._at_hand
        page = import_module(f"{self._package}.{self._pages[name]}")
        table: Mapping[str, Row] = getattr(page, self._table)
        return table

    def __iter__(self) -> Iterator[str]:
        """Iterate over the classes."""
        return chain(self._pages, self._at_hand)

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self._pages) + len(self._at_hand)
