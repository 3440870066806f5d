"""The texts that OUT keeps of the file that it was made from: Keras' own, and facts beside it.

The facts are what no text tells: who wrote it, where it was cut, its notes, and of every array of
weights its shape, its dtype and the name that Keras gave it. ``KeptModel`` opens both as a
container, so that an OUT, which may come from a stranger, is read by the steps that read a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras2torch_birnn.errors import WeightMismatchError, invalid, printable
from keras2torch_birnn.limits import MAX_RANK, MAX_SIZE
from keras2torch_birnn.readers.containers.container import Architecture, Container
from keras2torch_birnn.readers.input_files import objects_in, parse_object
from keras2torch_birnn.readers.store import STORED_DTYPES, Kind, Store, StoredArray
from keras2torch_birnn.readers.weights.paths import WeightPaths
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.schema.custom_layers import LAMBDA
from keras2torch_birnn.schema.shape_inference import expected_weights
from keras2torch_birnn.spec import (
    Cut,
    Generation,
    Kept,
    LayerPath,
    LayerSpec,
    ModelSpec,
    shape_fits,
)

if TYPE_CHECKING:
    from keras2torch_birnn.readers.weights.load_weights import LocatedWeights

_TEXTS = ("family", "keras_version", "backend", "writer")
_LISTS = ("from", "to", "notes", "weights")
_SPARE = 1024  # numbers that a model may declare beside those that its weights hold


def keep(spec: ModelSpec, found: Architecture, located: LocatedWeights) -> Kept:
    """Return what an OUT keeps of a model that was read."""
    weights = [
        {
            "layer": owner,
            "arrays": {
                name: {
                    "shape": array.shape,
                    "dtype": _name_dtype(array.dtype),
                    "name": located.names[owner][name],
                }
                for name, array in arrays.items()
            },
        }
        for owner, arrays in located.stored.items()
    ]
    facts = {
        "family": spec.generation.name,
        "keras_version": found.version,
        "backend": found.backend,
        "writer": found.writer,
        "from": spec.cut.first,
        "to": spec.cut.last,
        "notes": spec.notes,
        "weights": weights,
    }
    return Kept(_write_architecture(found.model), _write(facts))


def _write_architecture(model: Mapping[str, Any]) -> str:
    """Write the JSON of a model without the code of its Lambdas, which k2t never reads."""
    text = _write(model)
    if f'"{LAMBDA}"' not in text:
        return text
    copy = json.loads(text)
    for one in objects_in(copy):
        config = one.get("config")
        if one.get("class_name") == LAMBDA and isinstance(config, dict):
            config["function"] = None
            config["mask"] = None if config.get("mask") is None else ""  # that there is one
            if config.get("output_shape_type", "raw") != "raw":
                config["output_shape"] = None
    return _write(copy)


def _name_dtype(dtype: np.dtype[Any]) -> str:
    return "bool" if dtype.kind == "b" else f"<{dtype.kind}{dtype.itemsize}"


def _write(value: Any) -> str:
    """Write JSON that is no longer than the text it was read from."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class KeptModel(Container):
    """The texts that an OUT keeps, as a container whose arrays are zeros."""

    kind = "out"

    def __init__(self, kept: Kept) -> None:
        self._text = kept.architecture
        self.facts = parse_object(kept.facts, place="facts", needed=(*_TEXTS, *_LISTS))
        for keys, kind in ((_TEXTS, str), (_LISTS, list)):
            for key in keys:
                if not isinstance(self.facts[key], kind):
                    raise invalid(f"{key} is not as k2t writes it", "facts")
        self._owners = tuple(_read_owners(self.facts["weights"]))
        arrays = (array for _, one in self._owners for array, _ in one.values())
        super().__init__(_Zeros({array.path: array for array in arrays}))

    @property
    def cut(self) -> Cut:
        """Where the model was cut."""
        return Cut(_texts(self.facts, "from"), _texts(self.facts, "to"))

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the conversion."""
        return _texts(self.facts, "notes")

    def check_size(self, stored: int) -> None:
        """Refuse weights that are much larger than the tensors of the OUT."""
        shapes = (array.shape for _, one in self._owners for array, _ in one.values())
        declared = sum(map(math.prod, shapes))
        if declared > 2 * stored + _SPARE:
            raise WeightMismatchError(
                f"its tensors do not fit its facts: {declared} values declared, {stored} stored"
            )

    def check_read(self, generation: Generation, root: LayerSpec) -> None:
        """Refuse facts that the model that was read does not have.

        Raises:
            InvalidModelFileError: another family, or weights that are not those of a layer.
        """
        if generation.name != self.facts["family"]:
            raise invalid(f"family {printable(self.facts['family'])}", "facts")
        for layer in root.walk():
            if layer.class_name in SCHEMA:
                _check_weights(layer)

    def architecture(self, config: Mapping[str, Any] | None) -> Architecture:
        """Return the architecture; ``config`` is None, for an OUT has its own."""
        model = parse_object(self._text, place="architecture", needed=["class_name", "config"])
        version, backend, writer = (self.facts[key] for key in _TEXTS[1:])
        return Architecture(model, version, backend, writer)

    def locate_weights(
        self, root: LayerSpec, generation: Generation, left_out: frozenset[LayerPath] = frozenset()
    ) -> WeightPaths:
        """Return the paths of all weights, by the layers to which the facts give them."""
        return {
            owner: {name: array.path for name, (array, _) in arrays.items()}
            for owner, arrays in self._owners
        }

    def written_names(self, paths: WeightPaths) -> WeightPaths:
        """Return the names that Keras gave the weights."""
        return {
            owner: {name: written for name, (_, written) in arrays.items()}
            for owner, arrays in self._owners
            if owner in paths
        }


def _check_weights(layer: LayerSpec) -> None:
    wanted = expected_weights(layer)
    for name in (*wanted, *layer.weights):
        there = layer.weights[name].shape if name in layer.weights else None
        if name not in wanted or there is None or not shape_fits(there, wanted[name]):
            raise invalid(f"weight {printable(name)} is not that of the layer", layer.place)


def _texts(facts: Mapping[str, Any], key: str) -> tuple[str, ...]:
    if not all(isinstance(one, str) for one in facts[key]):
        raise invalid(f"{key} is not as k2t writes it", "facts")
    return tuple(facts[key])


_Arrays = dict[str, tuple[StoredArray, str]]  # the array of a weight, and Keras' name of it


def _read_owners(rows: Sequence[Any]) -> Iterator[tuple[tuple[str, ...], _Arrays]]:
    """Parse the rows of weights: the path of a layer, and its arrays by name."""
    for number, row in enumerate(rows):
        match row:
            case {"layer": [*owner], "arrays": dict() as arrays, **rest} if not rest:
                if not all(isinstance(part, str) for part in owner):
                    raise invalid("the path of a layer is not as k2t writes it", "facts")
                yield (
                    tuple(owner),
                    {
                        name: _read_array(f"{number}/{name}", array)
                        for name, array in arrays.items()
                    },
                )
            case _:
                raise invalid("weights are not as k2t writes them", "facts")


def _read_array(path: str, fact: Any) -> tuple[StoredArray, str]:
    match fact:
        case {"shape": [*shape], "dtype": str() as dtype, "name": str() as name, **rest} if (
            not rest
            and dtype in STORED_DTYPES
            and len(shape) <= MAX_RANK
            and all(type(size) is int and 0 <= size <= MAX_SIZE for size in shape)
        ):
            return StoredArray(path, tuple(shape), dtype, _NOTHING), name
    raise invalid(f"weight {printable(path)} is not as k2t writes it", "facts")


class _Nothing:
    def read_into(self, buffer: memoryview, at: int = 0) -> None:
        """Fill ``buffer`` with zeros."""
        np.frombuffer(buffer, np.uint8)[:] = 0


_NOTHING = _Nothing()


class _Zeros(Store):
    """Arrays by path, in no groups."""

    def __init__(self, arrays: Mapping[str, StoredArray]) -> None:
        self._arrays = arrays

    def kind(self, path: str) -> Kind | None:
        """Return the type of object at ``path``; None if there is none."""
        return "dataset" if path in self._arrays else None

    def members(self, group: str) -> dict[str, Kind]:
        """Return no members: there are no groups."""
        return {}

    def arrays(self, paths: Sequence[str]) -> list[StoredArray]:
        """Return the arrays at ``paths``."""
        return [self._arrays[path] for path in paths]
