"""Weights in several files: the index ``NAME.weights.json`` and the HDF5 files it names.

Written by Keras since 3.7 (``save_weights(max_shard_size=...)``, 3.15 ``saving/saving_lib.py``
``ShardedH5IOStore``): ``weight_map`` says for every ``vars`` group in which files its arrays are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from keras2torch_birnn.errors import WeightMismatchError, in_place, invalid, printable
from keras2torch_birnn.limits import MAX_SHARDS
from keras2torch_birnn.readers.containers.container import HDF5Container, OpenPath
from keras2torch_birnn.readers.containers.files import file_window, read_text
from keras2torch_birnn.readers.containers.hdf5_store import open_store
from keras2torch_birnn.readers.files.strict_json import parse_object
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.hdf5.index_check import Attribute, Kind
from keras2torch_birnn.readers.weights.store import Store

_INDEX = re.compile(rb"(\xef\xbb\xbf)?\s*\{.{0,4000}\"weight_map\"", re.DOTALL)


class ShardedWeights(HDF5Container):
    """Weights in several HDF5 files, named by an index; ``--config`` gives the architecture."""

    kind = "shards"

    @staticmethod
    def recognises(source: OpenPath) -> bool:
        """Tell whether the source is the index of shards."""
        return source.window is not None and bool(_INDEX.match(source.head))

    @classmethod
    def open(cls, source: OpenPath, opening: ExitStack) -> ShardedWeights:
        """Open all files that the index names."""
        text = read_text(source.opened, "")
        store = open_shards(opening, source.path.parent, text, "")
        container = cls(store)
        container.beside = store.names
        return container


def open_shards(opening: ExitStack, folder: Path, text: str, place: str) -> ShardedStore:
    """Open the shards that the index ``text`` names, which are files of ``folder``.

    Raises:
        InvalidModelFileError: as ``parse_index``, or a shard cannot be opened.
    """
    files = parse_index(text, place)
    stores: dict[str, Store] = {}
    for name in dict.fromkeys(name for names in files.values() for name in names):
        with in_place(name):
            window = file_window(opening, folder / name, member=True)
            stores[name] = opening.enter_context(open_store(window))
    return ShardedStore(stores, files)


def parse_index(text: str, place: str) -> dict[str, tuple[str, ...]]:
    """Parse the index: group of arrays -> names of its files, which have no path.

    Raises:
        InvalidModelFileError: not such an index, or it names files elsewhere.
    """
    index = parse_object(text, place=place, needed=["weight_map"])
    given = index["weight_map"]
    if not isinstance(given, Mapping) or not given:
        raise invalid("weight_map names no file", place)
    found: dict[str, tuple[str, ...]] = {}
    for group, value in given.items():
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names:
            raise invalid("weight_map names no file", place)
        found[group.strip("/")] = tuple(_plain(name, place) for name in names)
    count = len({name for names in found.values() for name in names})
    if count > MAX_SHARDS:
        raise invalid(f"weights in {count} files, more than {MAX_SHARDS}", place)
    return found


def _plain(name: Any, place: str) -> str:
    forbidden = ("/", "\\", ":", "\0")
    plain = isinstance(name, str) and not any(mark in name for mark in forbidden)
    if not plain or name.startswith(".") or not name.endswith(".h5"):
        raise invalid(f"{printable(name)} is not the name of a shard beside the index", place)
    return str(name)


class ShardedStore(Store):
    """Several HDF5 files as one store; ``files`` is the result of ``parse_index``."""

    def __init__(self, stores: Mapping[str, Store], files: Mapping[str, tuple[str, ...]]) -> None:
        self._stores, self._files = stores, files

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the files."""
        return tuple(self._stores)

    def kind(self, path: str) -> Kind | None:
        """Return the type of object at ``path`` in the first file that has it."""
        return next(filter(None, (self._kind_in(name, path) for name in self._stores)), None)

    def members(self, group: str) -> dict[str, Kind]:
        """Return the members of ``group`` in all files together."""
        found: dict[str, Kind] = {}
        for name, store in self._stores.items():
            if self._kind_in(name, group) == "group":
                found |= store.members(group)
        return found

    def _kind_in(self, name: str, path: str) -> Kind | None:
        with in_place(name):
            return self._stores[name].kind(path)

    def attributes_of(
        self, groups: Sequence[str], names: Sequence[str]
    ) -> list[dict[str, Attribute]]:
        """Return the attributes of the first file; shards have none of their own."""
        first = self.names[0]
        with in_place(first):
            return self._stores[first].attributes_of(groups, names)

    def arrays(self, paths: Sequence[str]) -> list[StoredArray]:
        """Return every array from the one file that has it."""
        owners = [self._owner(path) for path in paths]
        wanted: dict[str, list[str]] = {}
        for path, owner in zip(paths, owners, strict=True):
            wanted.setdefault(owner, []).append(path)
        found = {
            (owner, path): array
            for owner, own in wanted.items()
            for path, array in zip(own, self._arrays_of(owner, own), strict=True)
        }
        return [found[owner, path] for path, owner in zip(paths, owners, strict=True)]

    def _arrays_of(self, name: str, paths: Sequence[str]) -> list[StoredArray]:
        with in_place(name):
            return self._stores[name].arrays(paths)

    def _owner(self, path: str) -> str:
        names = dict.fromkeys(self._files.get(path.rpartition("/")[0].strip("/"), ()))
        have = [name for name in names if self._kind_in(name, path) == "dataset"]
        if len(have) == 1:
            return have[0]
        what = "not in the shards" if not have else f"in {len(have)} shards at once"
        raise WeightMismatchError(what, "the set of files is not complete", place=path)
