"""Interface of a store of arrays: groups, attributes and arrays by path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.hdf5.index_check import Attribute, Kind


class Store(Protocol):
    """Groups, attributes and arrays, in one file or several; see ``HDF5Store``."""

    def kind(self, path: str) -> Kind | None:
        """Return the type of object at ``path``; None if there is none."""
        ...

    def members(self, group: str) -> dict[str, Kind]:
        """Return the names and types of the direct members of ``group``."""
        ...

    def attributes(self, group: str, names: Sequence[str]) -> dict[str, Attribute]:
        """Return those of the attributes ``names`` that ``group`` has."""
        ...

    def attributes_of(
        self, groups: Sequence[str], names: Sequence[str]
    ) -> list[dict[str, Attribute]]:
        """Return those of the attributes ``names`` that each group has."""
        ...

    def arrays(self, paths: Sequence[str]) -> list[StoredArray]:
        """Return the arrays at ``paths``, checked but not read."""
        ...


class WithoutAttributes:
    """Base of stores whose files hold arrays and no attributes."""

    def attributes(self, group: str, names: Sequence[str]) -> dict[str, Attribute]:
        """Return nothing: there are no attributes."""
        return {}

    def attributes_of(
        self, groups: Sequence[str], names: Sequence[str]
    ) -> list[dict[str, Attribute]]:
        """Return nothing for every group: there are no attributes."""
        return [{} for _ in groups]
