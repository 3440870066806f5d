"""One row of the schema: a class's options, weights and output shape; and the pages of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from itertools import chain
from typing import Any, TypeVar

from keras2torch_birnn.schema.options import Option
from keras2torch_birnn.spec import Shape

Config = Mapping[str, Any]


class ShapeError(ValueError):
    """A layer cannot take an input of this shape; the text says why."""


def known(shape: Shape | None, rank: int | None = None, least_rank: int = 2) -> Shape | None:
    """Return the shape, None if it is unknown; refuse a rank that the layer cannot take."""
    if shape is None:
        return None
    if rank is not None and len(shape) != rank:
        raise ShapeError(f"an input of {rank} dimensions is expected, found {list(shape)}")
    if len(shape) < least_rank:
        raise ShapeError(f"at least {least_rank} dimensions are expected, found {list(shape)}")
    return shape


def last(shape: Shape | None) -> int | None:
    """Return the size of the last axis, or None."""
    return shape[-1] if shape else None


def normalized_axes(config: Config, rank: int) -> tuple[int, ...]:
    """Return the axes of a normalization as positive numbers, in the order of the shape."""
    result = sorted({axis % rank for axis in config["axis"] if -rank <= axis < rank})
    if len(result) != len(config["axis"]):
        raise ShapeError(f"axis {list(config['axis'])} does not fit an input of {rank} dimensions")
    return tuple(result)


def _same(config: Config, shape: Shape | None) -> Shape | None:
    return shape


WeightShapes = Mapping[str, Shape]


def _no_weights(config: Config, shape: Shape | None) -> WeightShapes:
    return {}


@dataclass(frozen=True)
class Schema:
    """One Keras class.

    ``options``: Keras' options, as a file states them. ``semantics``: what the reader infers or
    settles by the Keras version, by names of ours.
    ``weights(settings, input shape)`` returns name -> shape in Keras' order (None: any size),
    ``output(settings, input shape)`` the output's shape (settings: options and semantics together);
    both may raise ShapeError.
    ``not_trained``: weights that Keras lists after all trainable ones. ``integer_weights``: those
    of integer dtype. ``parts``: config keys that hold an inner layer.
    ``arguments``: the tensors it is called with, in order; ``call_options``: other
    arguments of a call. With several arguments, or a list of tensors, the input shape is a tuple of
    shapes. ``listed``: its one argument is a list of tensors. ``groups``: for weights of layers
    inside it, named "query/kernel": the name before the slash -> names of its group in the v3
    store. ``renamed``: other names of options -> those options. ``ignored``: keys that cannot
    change what a trained layer of this class computes (``readers.config.generations`` has those of
    all classes). ``refused``: unsupported features in words, for the list of layers.
    """

    options: Mapping[str, Option] = field(default_factory=dict)
    weights: Callable[[Config, Shape | None], WeightShapes] = _no_weights
    output: Callable[[Config, Shape | None], Any] = _same
    not_trained: tuple[str, ...] = ()
    integer_weights: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ("inputs",)
    call_options: Mapping[str, Option] = field(default_factory=dict)
    listed: bool = False
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    semantics: Mapping[str, Option] = field(default_factory=dict)
    refused: tuple[str, ...] = ()

    @property
    def may_have_weights(self) -> bool:
        """Tell whether there are options with which a layer of this class has weights."""
        return self.weights is not _no_weights


# ---- pages of rows -------------------------------------------------------------------------------

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
