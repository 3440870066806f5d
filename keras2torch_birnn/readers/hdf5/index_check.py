"""Checks of the parser process' answers, which are not trusted.

An answer becomes a ``StoredArray`` only if its bytes are inside the file and shared with no other
array, its chunks cover the array exactly, and its filters and number formats are supported.
"""

from __future__ import annotations

import base64
import binascii
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from keras2torch_birnn import limits
from keras2torch_birnn.errors import invalid, printable
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.readers.hdf5.arrays import (
    FLETCHER32,
    GZIP,
    SHUFFLE,
    STORED_DTYPES,
    Chunk,
    Chunked,
    Contiguous,
    Inline,
    Layout,
    StoredArray,
    sizes_before,
)

Attribute = str | int | float | tuple[str, ...]
Kind = Literal["group", "dataset"]


class ImpossibleError(Exception):
    """An answer does not have the requested form."""


def _integer(value: object) -> int:
    if type(value) is not int or not 0 <= value <= limits.MAX_INT64:
        raise ImpossibleError
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ImpossibleError
    return value


def _integers(value: object) -> tuple[int, ...]:
    return tuple(map(_integer, _list(value)))


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ImpossibleError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or any("\ud800" <= c <= "\udfff" for c in value):
        raise ImpossibleError
    return value


def check_kind(value: object) -> Kind:
    """Check the type of an object: ``group`` or ``dataset``."""
    if value == "group" or value == "dataset":
        return value
    raise ImpossibleError


def check_members(value: object) -> dict[str, Kind]:
    """Check the names and types of a group's members."""
    return {_text(name): check_kind(kind) for name, kind in _mapping(value).items()}


def check_attributes(value: object) -> dict[str, Attribute]:
    """Check the names and values of attributes."""
    return {_text(name): _attribute(one) for name, one in _mapping(value).items()}


def _attribute(value: object) -> Attribute:
    match value:
        case {"text": text}:
            return _text(text)
        case {"texts": texts}:
            return tuple(map(_text, _list(texts)))
        case {"number": int() | float() as number} if not isinstance(number, bool):
            return number
    raise ImpossibleError


class Ledger:
    """Byte ranges of all arrays of a file: no two overlap, and their inflated size is bounded."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._owners: list[str] = []
        self._most = self._left = limits.max_inflated_bytes(window.size)

    def enter(self, path: str, facts: object) -> StoredArray:
        """Check the description of an array, and claim its bytes."""
        known = _mapping(facts)
        stored_as, shape = _text(known.get("dtype")), _integers(known.get("shape"))
        if stored_as not in STORED_DTYPES or len(shape) > limits.MAX_RANK:
            raise ImpossibleError
        item = np.dtype(STORED_DTYPES[stored_as]).itemsize
        layout = _parse_layout(path, known, shape, item)
        self._spend(path, layout, item)
        for start, count in _extents(layout, math.prod(shape) * item):
            self._claim(path, start, start + count)
        return StoredArray(path, shape, stored_as, layout, self._window)

    def _spend(self, path: str, layout: Layout, item: int) -> None:
        if not isinstance(layout, Chunked) or GZIP not in layout.filters:
            return
        inflated = math.prod(layout.chunk) * item * len(layout.chunks)
        if inflated > self._left:
            raise invalid(
                f"its chunks inflate to {inflated} bytes; in a file of {self._window.size} bytes "
                f"all together may have {self._most}",
                path,
            )
        self._left -= inflated

    def _claim(self, path: str, start: int, end: int) -> None:
        if end > self._window.size:
            raise invalid(f"its bytes end at {end}, the file at {self._window.size}", path)
        at = bisect_left(self._starts, start)
        if at < len(self._starts) and self._starts[at] < end:
            raise invalid(f"its bytes are also those of {printable(self._owners[at])}", path)
        if at and self._ends[at - 1] > start:
            raise invalid(f"its bytes are also those of {printable(self._owners[at - 1])}", path)
        self._starts.insert(at, start)
        self._ends.insert(at, end)
        self._owners.insert(at, path)


def _extents(layout: Layout, nbytes: int) -> Sequence[tuple[int, int]]:
    match layout:
        case Contiguous(offset):
            return [(offset, nbytes)]
        case Chunked(chunks=chunks):
            return [(c.offset, c.stored) for c in chunks]
    return []


def _parse_layout(path: str, facts: Mapping[str, Any], shape: tuple[int, ...], item: int) -> Layout:
    nbytes = math.prod(shape) * item
    match facts.get("layout"):
        case "empty" if nbytes == 0:
            return Inline(b"")
        case "inline":
            return _parse_inline(path, facts, nbytes)
        case "contiguous":
            return _parse_contiguous(path, facts, nbytes)
        case "chunked":
            return _parse_chunked(path, facts, shape, item)
    raise ImpossibleError


def _parse_inline(path: str, facts: Mapping[str, Any], nbytes: int) -> Inline:
    try:
        data = base64.b64decode(_text(facts.get("bytes")), validate=True)
    except (binascii.Error, ValueError):
        raise ImpossibleError from None
    if len(data) != nbytes:
        raise invalid(f"{len(data)} bytes stored, {nbytes} declared", path)
    return Inline(data)


def _parse_contiguous(path: str, facts: Mapping[str, Any], nbytes: int) -> Contiguous:
    stored = _integer(facts.get("stored"))
    if facts.get("offset") is None or stored != nbytes:
        stored = 0 if facts.get("offset") is None else stored
        raise invalid(f"{stored or 'no'} bytes stored, {nbytes} declared", path)
    return Contiguous(_integer(facts.get("offset")))


def _parse_chunked(
    path: str, facts: Mapping[str, Any], shape: tuple[int, ...], item: int
) -> Chunked:
    chunk, rows = _integers(facts.get("chunk")), _list(facts.get("chunks"))
    if len(chunk) != len(shape) or 0 in chunk or len(rows) > limits.MAX_CHUNKS:
        raise ImpossibleError
    grid = math.prod(-(-length // step) for length, step in zip(shape, chunk, strict=True))
    if len(rows) != grid:
        raise invalid(f"{len(rows) or 'none'} of its {grid} chunks stored", path)
    filters = _parse_filters(path, facts.get("filters"), item)
    layout = Chunked(chunk, filters, tuple(_parse_chunk(row, len(shape)) for row in rows))
    _check_grid(path, layout, shape)
    _check_sizes(path, layout, item)
    return layout


def _parse_filters(path: str, rows: object, item: int) -> tuple[int, ...]:
    codes: list[int] = []
    for row in _list(rows):
        code, values = (_integer(row[0]), _integers(row[1])) if len(_list(row)) == 2 else (0, ())
        if code not in (GZIP, SHUFFLE, FLETCHER32):
            raise ImpossibleError
        if code in codes:
            raise invalid(f"filter {code} twice", path)
        if code == SHUFFLE and values[:1] != (item,):
            raise invalid(f"shuffled as items of {values[:1]} bytes, but they have {item}", path)
        codes.append(code)
    return tuple(codes)


def _parse_chunk(row: object, rank: int) -> Chunk:
    numbers = _integers(row)
    if len(numbers) != rank + 3:
        raise ImpossibleError
    skipped, offset, stored = numbers[rank:]
    return Chunk(numbers[:rank], skipped, offset, stored)


def _check_grid(path: str, layout: Chunked, shape: tuple[int, ...]) -> None:
    """Refuse chunks off the grid or at the same place; their number is checked already."""
    for one in layout.chunks:
        for at, step, length in zip(one.start, layout.chunk, shape, strict=True):
            if at % step or at >= length:
                raise invalid(f"a chunk at {one.start}, outside the grid of the array", path)
    if len({one.start for one in layout.chunks}) != len(layout.chunks):
        raise invalid("two chunks at the same place", path)


def _check_sizes(path: str, layout: Chunked, item: int) -> None:
    """Refuse an uncompressed chunk of another size than its shape implies."""
    count = math.prod(layout.chunk) * item
    for one in layout.chunks:
        expected = sizes_before(layout.filters_of(one), count)[-1]
        if expected not in (None, one.stored):
            raise invalid(f"a chunk of {one.stored} bytes, expected {expected}", path)
