"""Arrays of an HDF5 file, not read yet: positions of their bytes, and how to read them.

Made by ``index_check.py`` from checked descriptions. Reading never takes more memory than these
declare: a chunk inflates to exactly its size or is refused.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from keras2torch_birnn.errors import damaged, in_place, invalid
from keras2torch_birnn.readers.files.window import Readable

GZIP, SHUFFLE, FLETCHER32 = 1, 2, 3  # the HDF5 library's numbers of its filters

Array = np.ndarray[Any, np.dtype[Any]]

# Stored dtype -> NumPy's name of it. bfloat16 is the upper half of a float32.
STORED_DTYPES: Mapping[str, str] = {
    **{
        order + kind: order + kind
        for order in "<>"
        for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
    },
    "bool": "u1",
    "bfloat16": "<u2",
}
_READ_DTYPES: Mapping[str, str] = {"bool": "?", "bfloat16": "f4"}


@dataclass(frozen=True)
class Inline:
    """Bytes stored in the object header (HDF5's compact storage)."""

    data: bytes


@dataclass(frozen=True)
class Contiguous:
    """All bytes in one piece at ``offset``."""

    offset: int


@dataclass(frozen=True)
class Chunk:
    """One chunk: ``stored`` bytes at ``offset``, for the elements from ``start`` on.

    Bit ``i`` of ``skipped`` says that filter ``i`` was not applied to it.
    """

    start: tuple[int, ...]
    skipped: int
    offset: int
    stored: int

    def region(self, size: tuple[int, ...], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Return its bounds in the array; chunks at the far edges, of ``size``, stick out of it."""
        bounds = zip(self.start, size, shape, strict=True)
        return tuple((at, min(at + step, end)) for at, step, end in bounds)


@dataclass(frozen=True)
class Chunked:
    """Chunks of one shape, each passed through ``filters`` when it was written."""

    chunk: tuple[int, ...]
    filters: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    def filters_of(self, chunk: Chunk) -> tuple[int, ...]:
        """Return the filters that were applied to ``chunk``."""
        return tuple(f for i, f in enumerate(self.filters) if not chunk.skipped >> i & 1)


Layout = Inline | Contiguous | Chunked


@dataclass(frozen=True)
class StoredArray:
    """An array of the file; ``read`` reads it.

    ``dtype`` is what ``read`` returns: native byte order; bfloat16 becomes float32. ``stored_as``
    is a key of ``STORED_DTYPES``.
    """

    path: str
    shape: tuple[int, ...]
    stored_as: str
    layout: Layout
    window: Readable

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the array that ``read`` returns."""
        return np.dtype(_READ_DTYPES.get(self.stored_as, self.stored_as)).newbyteorder("=")

    @property
    def nbytes(self) -> int:
        """Bytes of the array that ``read`` returns."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stored_bytes(self) -> int:
        """Bytes of the numbers as they are stored, before they are compressed."""
        return math.prod(self.shape) * np.dtype(STORED_DTYPES[self.stored_as]).itemsize

    def read(self) -> Array:
        """Read the values: a new array, C-contiguous and writable."""
        with self._naming_array():
            return self.values(self.read_stored())

    def check(self) -> None:
        """Compare the stored bytes with their checksum, where the format has one."""

    @contextmanager
    def _naming_array(self) -> Iterator[None]:
        """Add this array's path to errors."""
        with in_place(self.path):
            try:
                yield
            except MemoryError:
                raise invalid(f"{self.nbytes} bytes do not fit into memory") from None

    def values(self, stored: Array) -> Array:
        """Return the values of stored numbers."""
        return _to_native(stored, self.stored_as)

    def read_stored(self) -> Array:
        """Read the numbers as they are stored: a new array, C-contiguous and writable."""
        with self._naming_array():
            values = np.empty(self.shape, np.dtype(STORED_DTYPES[self.stored_as]))
            flat = values.reshape(-1).view(np.uint8).data
            match self.layout:
                case Inline(data):
                    flat[:] = data
                case Contiguous(offset):
                    self.window.read_into(flat, offset)
                case Chunked():
                    _read_chunks(values, self.layout, self.window)
            return values


def _to_native(stored: Array, stored_as: str) -> Array:
    if stored_as == "bfloat16":
        return (stored.astype("u4") << 16).view("f4")
    if stored_as == "bool":
        return cast(Array, np.asarray(stored != 0))
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _read_chunks(values: Array, layout: Chunked, window: Readable) -> None:
    item = values.dtype.itemsize
    count = math.prod(layout.chunk) * item
    for chunk in layout.chunks:
        raw = window.read(chunk.stored, chunk.offset)
        data = unfilter(raw, layout.filters_of(chunk), count, item)
        block = np.frombuffer(data, values.dtype).reshape(layout.chunk)
        place = chunk.region(layout.chunk, values.shape)
        values[tuple(slice(a, b) for a, b in place)] = block[tuple(slice(b - a) for a, b in place)]


def sizes_before(filters: Sequence[int], count: int) -> list[int | None]:
    """Return a chunk's size in bytes at each stage of its filters; None, unknown, after gzip."""
    sizes: list[int | None] = [count]
    for code in filters:
        last = sizes[-1]
        grown = None if code == GZIP or last is None else last + 4 * (code == FLETCHER32)
        sizes.append(grown)
    return sizes


def unfilter(raw: bytes, filters: Sequence[int], count: int, item: int) -> bytes:
    """Undo ``filters``, the last one first; the result has ``count`` bytes or is refused."""
    sizes = sizes_before(filters, count)
    for code, size in zip(reversed(filters), reversed(sizes[:-1]), strict=True):
        raw = _UNDO[code](raw, size, item)
    if len(raw) != count:
        raise invalid(f"a chunk of {len(raw)} bytes, expected {count}")
    return raw


def _inflate(raw: bytes, size: int | None, item: int) -> bytes:
    if size is None:
        raise invalid("compressed twice")
    engine = zlib.decompressobj()
    try:
        # One byte more than expected: enough to see that there is more, or that it ended
        data = engine.decompress(raw, size + 1)
    except zlib.error as error:
        raise invalid(f"damaged gzip data ({error})") from None
    if len(data) != size or not engine.eof or engine.unused_data:
        found = f"more than {size}" if len(data) > size else f"{len(data)}"
        raise invalid(f"a chunk inflates to {found} bytes, expected exactly {size}")
    return data


def _unshuffle(raw: bytes, size: int | None, item: int) -> bytes:
    # Shuffled: all first bytes of the items, then all second bytes, ...; a rest stays as it is
    whole = len(raw) // item * item
    planes = np.frombuffer(raw, np.uint8, count=whole).reshape(item, -1)
    return planes.T.tobytes() + raw[whole:]


def _verify_fletcher32(raw: bytes, size: int | None, item: int) -> bytes:
    data, stored = raw[:-4], int.from_bytes(raw[-4:], "little")
    # Sums modulo 65535, where the library may write 65535 for 0
    if len(raw) < 4 or ((stored >> 16) % 65535, (stored & 0xFFFF) % 65535) != fletcher32(data):
        raise damaged("a chunk's checksum (fletcher32) is wrong")
    return data


def fletcher32(data: bytes) -> tuple[int, int]:
    """Return both sums modulo 65535 over big-endian 16-bit words, padded with a zero byte."""
    words = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2")
    low = high = 0
    for start in range(0, len(words), 1 << 16):
        piece = words[start : start + (1 << 16)].astype(np.uint64)
        weights = np.arange(len(piece), 0, -1, dtype=np.uint64)
        high = (high + low * len(piece) + int((piece * weights).sum())) % 65535
        low = (low + int(piece.sum())) % 65535
    return high, low


_UNDO = {GZIP: _inflate, SHUFFLE: _unshuffle, FLETCHER32: _verify_fletcher32}
