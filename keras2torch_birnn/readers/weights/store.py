"""Interface of a store of arrays: groups, attributes and arrays by path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from keras2torch_birnn.readers.hdf5.arrays import StoredArray

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
