"""HDF5 without its library in this process: a child locates arrays, this process reads them.

libhdf5 crashes or hangs on damaged files, and follows links out of them. So it runs in a child
(``parser_child.py``) that may fail and that returns names, shapes and byte positions only. These
are not trusted (``index_check.py``); then the bytes are read and inflated here, within the sizes
that were checked (``arrays.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from keras2torch_birnn.errors import InvalidModelFileError, K2TError, gather, invalid
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.hdf5.index_check import (
    Attribute,
    ImpossibleError,
    Kind,
    Ledger,
    check_attributes,
    check_kind,
    check_members,
)
from keras2torch_birnn.readers.hdf5.parser_child import NOT_THERE
from keras2torch_birnn.readers.hdf5.parser_process import ParserProcess
from keras2torch_birnn.readers.weights.store import Store

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

    The child starts at once and in parallel with the caller; the first question waits for it. The
    window's file must stay open while arrays are read. Paths are like ``/model_weights/dense``.
    """

    def __init__(self, window: Window) -> None:
        start = find_signature(window)
        if start is None:
            raise invalid("not HDF5 data")
        # From the signature on: so a user block needs no care anywhere (HDF5 libraries disagree on
        # whether it counts in the positions of chunks)
        inner = window.part(start, window.size - start)
        self._arrays: dict[str, StoredArray] = {}
        self._ledger = Ledger(inner)
        self._parser = ParserProcess(inner)

    def __enter__(self) -> HDF5Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child; located arrays can be read as long as the file is open."""
        self._parser.close()

    def kind(self, path: str) -> Kind | None:
        """Return the type of object at ``path``; None if there is none."""
        (answer,) = self._ask("kind", [path])
        return None if answer is None else self._check(check_kind, answer)

    def members(self, group: str) -> dict[str, Kind]:
        """Return the names and types of the direct members of ``group``, sorted by name."""
        (answer,) = self._ask("members", [group])
        return self._check(check_members, answer)

    def attributes_of(
        self, groups: Sequence[str], names: Sequence[str]
    ) -> list[dict[str, Attribute]]:
        """Return the attributes of many groups, with one request.

        A list that Keras split into ``name0``, ``name1``, ... comes joined under ``name``.
        """
        answers = self._ask("attributes", groups, list(names))
        return [self._check(check_attributes, answer) for answer in answers]

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
        return self._check(lambda facts: self._ledger.enter(path, facts), answer)

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
