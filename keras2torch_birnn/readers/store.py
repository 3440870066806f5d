"""Groups, attributes and arrays of a file by path; arrays are checked, and not read yet."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np

from keras2torch_birnn.errors import in_place, invalid

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


class ByteSource(Protocol):
    """Where the bytes of an array come from: a window on a file, or the process that reads HDF5."""

    def read_into(self, buffer: memoryview, at: int = 0) -> None:
        """Fill ``buffer`` with the bytes from ``at`` on."""
        ...


@dataclass(frozen=True)
class StoredArray:
    """An array of the file; ``read`` reads it.

    ``dtype`` is what ``read`` returns: native byte order; bfloat16 becomes float32. ``stored_as``
    is a key of ``STORED_DTYPES``. ``offset``: of its bytes in ``source``.
    """

    path: str
    shape: tuple[int, ...]
    stored_as: str
    source: ByteSource
    offset: int = 0

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
        """Bytes of the numbers as they are stored."""
        return math.prod(self.shape) * np.dtype(STORED_DTYPES[self.stored_as]).itemsize

    def read(self) -> Array:
        """Read the values: a new array, C-contiguous and writable."""
        with in_place(self.path):
            try:
                return self.values(self.read_stored())
            except MemoryError:
                raise invalid(f"{self.nbytes} bytes do not fit into memory") from None

    def read_stored(self) -> Array:
        """Read the numbers as they are stored: a new array, C-contiguous and writable."""
        values = np.empty(self.shape, np.dtype(STORED_DTYPES[self.stored_as]))
        with in_place(self.path):
            self.source.read_into(values.reshape(-1).view(np.uint8).data, self.offset)
        return values

    def values(self, stored: Array) -> Array:
        """Return the values of stored numbers."""
        if self.stored_as == "bfloat16":
            return (stored.astype("u4") << 16).view("f4")
        if self.stored_as == "bool":
            return cast(Array, np.asarray(stored != 0))
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)


Attribute = str | int | float | tuple[str, ...]
Kind = Literal["group", "dataset"]


class Store(ABC):
    """Groups, attributes and arrays, in one file or several; see ``HDF5Store``."""

    @abstractmethod
    def kind(self, path: str) -> Kind | None:
        """Return the type of object at ``path``; None if there is none."""

    @abstractmethod
    def members(self, group: str) -> dict[str, Kind]:
        """Return the names and types of the direct members of ``group``."""

    def attributes(self, group: str, names: Sequence[str]) -> dict[str, Attribute]:
        """Return those of the attributes ``names`` that ``group`` has."""
        (found,) = self.attributes_of([group], names)
        return found

    def attributes_of(
        self, groups: Sequence[str], names: Sequence[str]
    ) -> list[dict[str, Attribute]]:
        """Return those of the attributes ``names`` that each group has: none in most formats."""
        return [{} for _ in groups]

    @abstractmethod
    def arrays(self, paths: Sequence[str]) -> list[StoredArray]:
        """Return the arrays at ``paths``, checked but not read."""
