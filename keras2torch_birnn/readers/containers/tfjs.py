"""TensorFlow.js: a ``model.json`` and the files of weights that it names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from keras2torch_birnn import limits
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    UnsupportedOptionError,
    WeightMismatchError,
    in_place,
    invalid,
    printable,
)
from keras2torch_birnn.readers.config.generations import version_by_shape
from keras2torch_birnn.readers.containers.container import Architecture, Container, OpenPath
from keras2torch_birnn.readers.input_files import (
    Folder,
    Window,
    check_name,
    objects_in,
    parse_object,
    read_text,
)
from keras2torch_birnn.readers.store import Array, Kind, Store, StoredArray
from keras2torch_birnn.readers.weights.paths import WeightPaths, layer_entries, layout_of
from keras2torch_birnn.readers.weights.slots import Layout
from keras2torch_birnn.readers.weights.v3 import v3_groups, v3_paths
from keras2torch_birnn.spec import Generation, LayerPath, LayerSpec

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
class JoinedWindows:
    """Windows one after another, as if they were one."""

    parts: tuple[Window, ...]

    @property
    def size(self) -> int:
        """The number of bytes of all parts."""
        return sum(part.size for part in self.parts)

    def read_into(self, buffer: memoryview, at: int = 0) -> None:
        """Fill ``buffer`` with the bytes from ``at`` on."""
        done = start = 0
        for part in self.parts:
            first = at + done - start
            if 0 <= first < part.size and done < len(buffer):
                piece = buffer[done : done + part.size - first]
                part.read_into(piece, first)
                done += len(piece)
            start += part.size
        if done < len(buffer):
            raise InvalidModelFileError(
                f"bytes {at} to {at + len(buffer)} are needed, but there are {self.size}",
                "truncated file?",
            )


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


def read_manifest(manifest: Any, members: Folder) -> dict[str, StoredArray]:
    """Open all files that a manifest names, and return the model's weights by name.

    Raises:
        InvalidModelFileError: no manifest, or its sizes are not those of the files.
    """
    found: dict[str, StoredArray] = {}
    for number, group in enumerate(_list(manifest, "weightsManifest")):
        place = f"weightsManifest group {number}"
        paths, weights = (_list(_object(group, place).get(k), place) for k in ("paths", "weights"))
        if len(paths) > limits.MAX_CHECKPOINT_SHARDS:
            raise invalid(f"{len(paths)} files", place)
        windows = JoinedWindows(tuple(members.open(_path(path, place)) for path in paths))
        offset = 0
        for entry in weights:
            array = _read_entry(_object(entry, place), windows, offset)
            offset += array.stored_bytes
            if entry.get("group") == "optimizer":
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
    return found


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


# ---- the container -------------------------------------------------------------------------------


# Layers models of TensorFlow.js: ``model.json`` and the files of weights that it names.
#
# Written by ``tensorflowjs_converter`` (Python) and by ``model.save()`` (JavaScript). Their order
# of weights is not the model's: a weight belongs to the layer whose name is part of its own name.
# Source: tfjs 4.22 ``tfjs-core/src/io/io_utils.ts`` and ``tfjs-layers/src/models.ts``.


_HEAD = re.compile(rb'(\xef\xbb\xbf)?\s*\{.{0,4000}"(modelTopology|weightsManifest)"', re.DOTALL)
_JAVASCRIPT = "tfjs-layers"
# TF.js has the defaults and equations of this Keras.
_SAME_AS = "2.2.4"
# Options for which TF.js writes null where Keras has a default.
_NULL_OPTIONS = ("implementation", "mask_zero", "unit_forget_bias", "input_length")
_NUMBERED = re.compile(r"(.*/)?vars/\d{1,9}")
_LOOKED_AT = 64  # parts of a weight's name that are looked at, from its end


class TensorFlowJS(Container):
    """A ``model.json`` with the files that it names."""

    kind = "tfjs"

    def __init__(self, weights: Mapping[str, StoredArray], model: Mapping[str, Any]) -> None:
        super().__init__(ManifestStore(weights))
        self._weights, self._model = weights, model

    @staticmethod
    def recognises(source: OpenPath) -> bool:
        """Tell whether the source is the ``model.json`` of a model."""
        return source.window is not None and bool(_HEAD.match(source.head))

    @classmethod
    def open(cls, source: OpenPath, opening: ExitStack) -> TensorFlowJS:
        """Read the JSON and open the files beside it."""
        members = Folder(source.path.parent, opening)
        model = parse_object(read_text(source.opened, "").removeprefix("\ufeff"), place="")
        topology = model.get("modelTopology")
        is_graph = isinstance(topology, Mapping) and "node" in topology
        if model.get("format") == "graph-model" or is_graph:
            raise InvalidModelFileError(
                "a TF.js graph model: operations, without the layers that they were made of",
                "give the Keras model that it was converted from, or convert that with "
                "--output_format=tfjs_layers_model",
            )
        if not isinstance(topology, Mapping):
            raise invalid("without modelTopology")
        return cls(read_manifest(model.get("weightsManifest"), members), topology)

    def architecture(self, config: Mapping[str, Any] | None) -> Architecture:
        """Find the architecture and its Keras version; ``config``: the JSON of ``--config``."""
        model = self._model.get("model_config", self._model)
        if isinstance(model, str):  # converters before 0.8 wrote JSON inside of JSON
            model = parse_object(model, place="model_config")
        if not isinstance(model, Mapping) or not {"class_name", "config"} <= model.keys():
            raise invalid("without class_name, config", "modelTopology")
        version = str(self._model.get("keras_version") or "")
        if version.startswith(_JAVASCRIPT):
            translated = _to_keras(model)
            return Architecture(config or translated, _SAME_AS, writer=version)
        version = version or version_by_shape(model) or _SAME_AS
        return Architecture(config or model, version, str(self._model.get("backend") or ""))

    def compiled(self, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Find what the model was compiled with; ``config``: the JSON of ``--config``."""
        found = self._model.get("training_config")
        return found if isinstance(found, Mapping) else super().compiled(config)

    def locate_weights(
        self, root: LayerSpec, generation: Generation, left_out: frozenset[LayerPath] = frozenset()
    ) -> WeightPaths:
        """Find the path of every weight: the layers whose names are in it decide.

        In models that were converted from a ``.keras`` file the paths are numbered as there.
        """
        names = list(self._weights)
        if not any(map(_NUMBERED.fullmatch, names)):
            return locate_by_names(root, names, layout_of(generation), left_out)
        paths = v3_paths(root, self.store, generation, left_out)
        used = {path.lstrip("/") for found in paths.values() for path in found.values()}
        aside = tuple(v3_groups(root, self.store, generation, left_out))
        extra = next((n for n in names if n not in used and not f"/{n}".startswith(aside)), None)
        if extra is not None:
            raise _homeless(extra, "no layer")
        return paths

    def weight_names(self) -> Mapping[str, str]:
        """Return name -> path."""
        return {name: name for name in self._weights}


# ---- from TF.js to Keras -----------------------------------------------------------------------


def _to_keras(model: Any) -> Any:
    """Return a configuration of TF.js in the words of Keras.

    One with a mask and a Bidirectional, wherever they are, is refused: TF.js drops the mask there,
    Keras does not.
    """
    translated = _translate(model)
    layers = [one for one in objects_in(translated) if isinstance(one.get("config"), Mapping)]
    kinds = [layer.get("class_name") for layer in layers]
    embeds = (one for one, kind in zip(layers, kinds, strict=True) if kind == "Embedding")
    masks = "Masking" in kinds or any(one["config"].get("mask_zero") for one in embeds)
    if masks and "Bidirectional" in kinds:
        raise UnsupportedOptionError(
            "a mask in a TF.js model with a Bidirectional: TF.js ignores it there, Keras does not",
            "convert the Keras model that it was made from, or remove Masking and mask_zero",
            place="modelTopology",
        )
    return translated


def _translate(value: Any) -> Any:
    """Translate a configuration and all in it."""
    if isinstance(value, list):
        return list(map(_translate, value))
    if not isinstance(value, Mapping):
        return value
    found = {key: _translate(one) for key, one in value.items()}
    config = found.get("config")
    if "class_name" in found and isinstance(config, dict):
        for key in _NULL_OPTIONS:
            if config.get(key, 0) is None:
                del config[key]
        if found["class_name"] == "RNN" and "cell" in config:
            config.pop("cells", None)  # those of the cell, once more
    return found


def locate_by_names(
    root: LayerSpec,
    names: Sequence[str],
    layout: Layout,
    left_out: frozenset[LayerPath] = frozenset(),
) -> WeightPaths:
    """Give every weight to the one layer, however deep in models, whose name is in its own.

    left_out: the paths of layers whose weights are passed over.

    Raises:
        WeightMismatchError: none, or several; or they are not those of the layer.
    """
    layers = list(_layers(root))
    owners: dict[str, set[LayerPath]] = {}
    for layer in layers:
        for inner in (layer, *_layers_inside(layer)):
            owners.setdefault(inner.name, set()).add(layer.path)
    listed: dict[LayerPath, list[str]] = {}
    for name in names:
        own = _longest(name, owners)
        if len(own) != 1:
            raise _homeless(name, "several layers" if own else "no layer")
        listed.setdefault(own.pop(), []).append(name)
    found: dict[LayerPath, dict[str, str]] = {}
    for layer in layers:
        if layer.path not in left_out:
            entries = listed.get(layer.path, ())
            found |= layer_entries(layer, entries, printable(layer.place), layout)
    return found


def _homeless(name: str, what: str) -> WeightMismatchError:
    return WeightMismatchError(
        f"a weight of {what} of the configuration",
        "the files belong to another model",
        place=printable(name),
    )


def _longest(name: str, owners: Mapping[str, set[LayerPath]]) -> set[LayerPath]:
    """Return the paths of all layers in a name, of those that have most parts ("enc/1")."""
    parts = name.split("/")[:-1][-_LOOKED_AT:]
    for count in range(len(parts), 0, -1):
        runs = ("/".join(parts[at : at + count]) for at in range(len(parts) - count + 1))
        found = {owner for run in runs for owner in owners.get(run, ())}
        if found:
            return found
    return set()


def _layers(model: LayerSpec) -> Iterator[LayerSpec]:
    """Yield the layers of a model and of the models in it, but no model itself."""
    for layer in model.graph.layers if model.graph else ():
        if layer.graph is None:
            yield layer
        else:
            yield from _layers(layer)


def _layers_inside(layer: LayerSpec) -> Iterator[LayerSpec]:
    """Yield the layers of a model that a layer wraps."""
    for part in layer.parts.values():
        if part.graph is not None:
            yield from _layers(part)
        yield from _layers_inside(part)
