"""Weights of a TF.js model: its manifest says where each is in the files, and how it is rounded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from keras2torch_birnn import limits
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    WeightMismatchError,
    in_place,
    invalid,
    printable,
)
from keras2torch_birnn.readers.containers.members import Folder, check_name
from keras2torch_birnn.readers.files.window import JoinedWindows
from keras2torch_birnn.readers.hdf5.arrays import Array, StoredArray
from keras2torch_birnn.readers.weights.store import Kind, Store

_DTYPES: Mapping[str, str] = {
    "float32": "<f4",
    "float16": "<f2",
    "int32": "<i4",
    "bool": "bool",
    "uint8": "<u1",
    "uint16": "<u2",
}


_QUANTIZED = ("uint8", "uint16", "float16")


_BLOCK = 1 << 18  # values that are computed at once


@dataclass(frozen=True)
class QuantizedArray(StoredArray):
    """Numbers that were rounded to few bits: ``value = stored * scale + least``."""

    target: str = "f4"
    scale: float = 1.0
    least: float = 0.0

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of what is read."""
        return np.dtype(self.target)

    def values(self, stored: Array) -> Array:
        """Compute the values in float64, as JavaScript does, a block at a time."""
        out = np.empty(stored.size, self.dtype)
        flat = super().values(stored).reshape(-1)
        for start in range(0, out.size, _BLOCK):
            some = flat[start : start + _BLOCK] * np.float64(self.scale) + self.least
            out[start : start + _BLOCK] = np.rint(some) if self.target == "i4" else some
        return out.reshape(stored.shape)


@dataclass(frozen=True)
class ManifestStore(Store):
    """The weights of a manifest as a ``Store``. A path is a weight's name."""

    weights: Mapping[str, StoredArray]

    @cached_property
    def _groups(self) -> dict[str, dict[str, Kind]]:
        groups: dict[str, dict[str, Kind]] = {"": {}}
        for name in self.weights:
            kind: Kind = "dataset"
            while name:
                group, _, last = name.rpartition("/")
                groups.setdefault(group, {})[last] = kind
                name, kind = group, "group"
        return groups

    def kind(self, path: str) -> Kind | None:
        """Return the kind of object at ``path``; None if there is none."""
        path = path.strip("/")
        if path in self.weights:
            return "dataset"
        return "group" if path in self._groups else None

    def members(self, group: str) -> dict[str, Kind]:
        """Return the names and kinds of the direct members of ``group``."""
        return self._groups[group.strip("/")]

    def arrays(self, paths: Sequence[str]) -> list[StoredArray]:
        """Return the arrays at ``paths``, checked but not read."""
        missing = next((path for path in paths if path.strip("/") not in self.weights), None)
        if missing is not None:
            raise WeightMismatchError(
                "no such weight", "the files belong to another model", place=printable(missing)
            )
        return [self.weights[path.strip("/")] for path in paths]


@dataclass(frozen=True)
class Manifest:
    """Weights by name, the names of the files, and whether an optimizer's are in them, too."""

    weights: Mapping[str, StoredArray]
    names: tuple[str, ...]
    has_optimizer: bool


def read_manifest(manifest: Any, members: Folder) -> Manifest:
    """Open all files that a manifest names, and say where each weight is in them.

    Raises:
        InvalidModelFileError: no manifest, or its sizes are not those of the files.
    """
    found: dict[str, StoredArray] = {}
    names: list[str] = []
    has_optimizer = False
    for number, group in enumerate(_list(manifest, "weightsManifest")):
        place = f"weightsManifest group {number}"
        paths, weights = (_list(_object(group, place).get(k), place) for k in ("paths", "weights"))
        if len(paths) > limits.MAX_CHECKPOINT_SHARDS:
            raise invalid(f"{len(paths)} files", place)
        own = [_path(path, place) for path in paths]
        names += own
        windows = JoinedWindows(tuple(map(members.open, own)))
        offset = 0
        for entry in weights:
            array = _read_entry(_object(entry, place), windows, offset)
            offset += array.stored_bytes
            if _object(entry, place).get("group") == "optimizer":
                has_optimizer = True
                continue
            if array.path in found:
                raise invalid("two weights of this name", printable(array.path))
            found[array.path] = array
        if offset != windows.size:
            raise InvalidModelFileError(
                f"weights of {offset} bytes in files of {windows.size}",
                "was the download complete?",
                place=place,
            )
    return Manifest(found, tuple(dict.fromkeys(names)), has_optimizer)


def _path(path: Any, place: str) -> str:
    if not isinstance(path, str):
        raise invalid("a path that is no text", place)
    with in_place(place):
        check_name(path.removeprefix("./"))
    return path.removeprefix("./")


def _read_entry(entry: Mapping[str, Any], windows: JoinedWindows, offset: int) -> StoredArray:
    name, dtype, shape = (entry.get(key) for key in ("name", "dtype", "shape"))
    if not isinstance(name, str):
        raise invalid("a weight without a name", "weightsManifest")
    place = printable(name)
    if len(name) > limits.MAX_NAME_BYTES or name.count("/") > limits.MAX_GROUP_DEPTH:
        raise invalid("a name that is too long", place)
    if not isinstance(shape, list) or len(shape) > limits.MAX_RANK or not all(map(_is_size, shape)):
        raise invalid("a weight without a shape", place)
    quantization = entry.get("quantization")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise InvalidModelFileError(
            f"a weight of dtype {printable(repr(dtype))}", "numbers are expected", place=place
        )
    if quantization is None:
        return StoredArray(name, tuple(shape), _DTYPES[dtype], windows, offset)
    facts = _object(quantization, place)
    stored, scale, least = (facts.get(k, v) for k, v in (("dtype", 0), ("scale", 1), ("min", 0)))
    target = {"float32": "f4", "int32": "i4"}.get(str(facts.get("original_dtype", dtype)), "")
    if stored not in _QUANTIZED or not (_is_number(scale) and _is_number(least)) or not target:
        raise invalid(f"quantization {printable(repr(quantization))} is not known", place)
    if stored == "float16":
        scale, least = 1.0, 0.0
    return QuantizedArray(
        name, tuple(shape), _DTYPES[stored], windows, offset, target, scale, least
    )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid("a list is expected", place)
    return value


def _object(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise invalid("an object is expected", place)
    return value
