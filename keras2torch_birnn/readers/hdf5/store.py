"""HDF5 without its library in this process: a child reads the file and hands plain arrays over.

libhdf5 crashes or hangs on damaged files, and follows links out of them. So it runs in a child
(``parser_child.py``) that may fail. Nothing that the child says is trusted but the values of
arrays: names, kinds, dtypes and shapes are checked here, and how many bytes all arrays may have
together, before memory is taken for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError, K2TError, gather, invalid
from keras2torch_birnn.readers.hdf5.parser_child import NOT_THERE
from keras2torch_birnn.readers.hdf5.parser_process import ParserProcess
from keras2torch_birnn.readers.input_files import Window
from keras2torch_birnn.readers.store import STORED_DTYPES, Attribute, Kind, Store, StoredArray

_INCOMPLETE = "the file is incomplete, one of several, or belongs to another model"
SIGNATURE = b"\x89HDF\r\n\x1a\n"

_T = TypeVar("_T")


def find_signature(window: Window) -> int | None:
    """Find where HDF5 data start: 0, 512, 1024, ... (after a user block), or None."""
    at = 0
    while at + len(SIGNATURE) <= window.size:
        if window.head(len(SIGNATURE), at) == SIGNATURE:
            return at
        at = max(512, at * 2)
    return None


class HDF5Store(Store):
    """An HDF5 file: groups, attributes and arrays by path, through hard links only.

    The child starts at once and in parallel with the caller; the first question waits for it.
    Arrays can be read until ``close``. Paths are like ``/model_weights/dense``.
    """

    def __init__(self, window: Window) -> None:
        start = find_signature(window)
        if start is None:
            raise invalid("not HDF5 data")
        # From the signature on: so a user block needs no care anywhere (HDF5 libraries disagree on
        # whether it counts in the positions of chunks)
        inner = window.part(start, window.size - start)
        self._arrays: dict[str, StoredArray] = {}
        self._budget = Budget(inner.size)
        self._parser = ParserProcess(inner)

    def __enter__(self) -> HDF5Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        self._parser.close()

    def kind(self, path: str) -> Kind | None:
        """Return the type of object at ``path``; None if there is none."""
        (answer,) = self._ask("kind", [path])
        return None if answer is None else self._check(_kind, answer)

    def members(self, group: str) -> dict[str, Kind]:
        """Return the names and types of the direct members of ``group``, sorted by name."""
        (answer,) = self._ask("members", [group])
        return self._check(_members, answer)

    def attributes_of(
        self, groups: Sequence[str], names: Sequence[str]
    ) -> list[dict[str, Attribute]]:
        """Return the attributes of many groups, with one request.

        A list that Keras split into ``name0``, ``name1``, ... comes joined under ``name``.
        """
        answers = self._ask("attributes", groups, list(names))
        return [self._check(_attributes, answer) for answer in answers]

    def arrays(self, paths: Sequence[str]) -> list[StoredArray]:
        """Return the arrays at ``paths``, checked but not read; one error lists all refusals."""
        new = [path for path in dict.fromkeys(paths) if path not in self._arrays]
        problems: list[K2TError] = []
        for path, answer in zip(new, self._parser.ask("dataset", new), strict=True):
            try:
                self._arrays[path] = self._enter(path, answer)
            except InvalidModelFileError as error:
                problems.append(error)
        _raise_all(problems)
        return [self._arrays[path] for path in paths]

    def _enter(self, path: str, answer: object) -> StoredArray:
        if isinstance(answer, K2TError):
            raise answer
        shape, stored_as = self._check(lambda facts: self._budget.enter(path, facts), answer)
        return StoredArray(path, shape, stored_as, _Values(self._parser, path))

    def _ask(self, question: str, paths: Sequence[str], *more: Any) -> list[Any]:
        answers = self._parser.ask(question, paths, *more)
        _raise_all([answer for answer in answers if isinstance(answer, K2TError)])
        return answers

    def _check(self, check: Callable[[object], _T], answer: object) -> _T:
        try:
            return check(answer)
        except ImpossibleError:
            raise self._parser.impossible() from None


def _raise_all(problems: Sequence[K2TError]) -> None:
    missing = [problem for problem in problems if problem.message == NOT_THERE]
    if len(missing) > 1:  # one line for a file that is one of several, or another model's
        first, count = missing[0], len(missing) - 1
        several = f"{NOT_THERE}, nor {'is another' if count == 1 else f'are {count} others'}"
        one = type(first)(several, _INCOMPLETE, place=first.place)
        problems = [one, *(problem for problem in problems if problem.message != NOT_THERE)]
    if problems:
        raise gather(problems[:20])


# ---- what the child says -------------------------------------------------------------------------


class ImpossibleError(Exception):
    """An answer does not have the requested form."""


@dataclass(frozen=True)
class _Values:
    """The bytes of one array, which the child reads."""

    parser: ParserProcess
    path: str

    def read_into(self, buffer: memoryview, at: int = 0) -> None:
        """Fill ``buffer`` with all of them."""
        self.parser.read_into(self.path, buffer)


class Budget:
    """How many bytes the arrays of a file may have together: no more than are in the file.

    Compressed ones may have a multiple of that.
    """

    def __init__(self, size: int) -> None:
        self._size = self._stored = size
        self._most = self._inflated = limits.max_inflated_bytes(size)

    def enter(self, path: str, facts: object) -> tuple[tuple[int, ...], str]:
        """Check the description of an array; return its shape, and what its numbers are."""
        match facts:
            case {"shape": list(lengths), "dtype": str(stored_as), "inflated": inflated}:
                shape, inflated = tuple(map(_size, lengths)), _size(inflated)
            case _:
                raise ImpossibleError
        if stored_as not in STORED_DTYPES or len(shape) > limits.MAX_RANK:
            raise ImpossibleError
        count = math.prod(shape) * np.dtype(STORED_DTYPES[stored_as]).itemsize
        if not inflated and count > self._stored:
            raise invalid(
                f"{count} bytes declared; all arrays together have more than the file, which has "
                f"{self._size}",
                path,
            )
        if inflated and max(inflated, count) > self._inflated:
            raise invalid(
                f"its chunks inflate to {max(inflated, count)} bytes; in a file of {self._size} "
                f"bytes all together may have {self._most}",
                path,
            )
        self._stored -= 0 if inflated else count
        self._inflated -= max(inflated, count) if inflated else 0
        return shape, stored_as


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value <= limits.MAX_INT64:
        raise ImpossibleError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or any("\ud800" <= c <= "\udfff" for c in value):
        raise ImpossibleError
    return value


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ImpossibleError
    return {_text(name): one for name, one in value.items()}


def _kind(value: object) -> Kind:
    if value == "group" or value == "dataset":
        return value
    raise ImpossibleError


def _members(value: object) -> dict[str, Kind]:
    return {name: _kind(kind) for name, kind in _mapping(value).items()}


def _attributes(value: object) -> dict[str, Attribute]:
    return {name: _attribute(one) for name, one in _mapping(value).items()}


def _attribute(value: object) -> Attribute:
    match value:
        case {"text": text}:
            return _text(text)
        case {"texts": list(texts)}:
            return tuple(map(_text, texts))
        case {"number": int() | float() as number} if not isinstance(number, bool):
            return number
    raise ImpossibleError
