"""Layers of the source: where their weights are, and the way back from torch's tensors to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from keras2torch_birnn.errors import in_place, printable
from keras2torch_birnn.layers.graph import leaf_layers
from keras2torch_birnn.layers.origins import Origins, find_origins
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.plugins.checks import complete_shapes
from keras2torch_birnn.readers.config.parsing import common_dtype
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.steps import (
    PathLike,
    Reading,
    infer_shapes,
    parse,
    read_weights,
)
from keras2torch_birnn.readers.store import StoredArray
from keras2torch_birnn.readers.weights.load_weights import LocatedWeights
from keras2torch_birnn.readers.weights.slots import is_summed, replace_layers
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.schema.training_rules import with_training_rules
from keras2torch_birnn.spec import NO_CUT, Cut, LayerPath, LayerSpec, ModelSpec, with_dtype

# The path of a module, and its layer.
Leaf: TypeAlias = tuple[str, LayerSpec]


@dataclass(frozen=True)
class Inverse(Origins[str]):
    """The way back of one layer; its weights are the paths of arrays in the file.

    ``summed``: paths of arrays whose second half is added to the first.
    """

    summed: frozenset[str]


@dataclass(frozen=True)
class Located:
    """A model in an open container, and where its weights are."""

    spec: ModelSpec
    weights: LocatedWeights

    @cached_property
    def arrays(self) -> Mapping[str, StoredArray]:
        """Every array with weights, by path."""
        return {a.path: a for held in self.weights.stored.values() for a in held.values()}

    @cached_property
    def read_as(self) -> np.dtype[Any]:
        """The float dtype in which the weights are read."""
        return common_dtype([np.empty(0, array.dtype) for array in self.arrays.values()])

    def twins(self) -> Iterator[tuple[StoredArray, StoredArray]]:
        """Yield arrays that are one weight in Keras, which wrote it twice.

        Legacy HDF5 files have a layer that is called alone and inside a wrapper or model in both
        places, under one name and with the same values.
        """
        found: dict[tuple[str, ...], list[StoredArray]] = {}
        for row in self.weights.rows:
            for name, array in row.arrays.items():
                known = (row.layer.class_name, row.layer.name, name)
                found.setdefault(known, []).append(array)
        for first, *others in found.values():
            for other in others:
                if other.path != first.path and _have_same_values(first, other):
                    yield first, other

    def layers(self) -> Iterator[Leaf]:
        """Yield every layer that has a module."""
        yield from leaf_layers(with_training_rules(self.spec.root, self.spec.generation))

    def inverses(self) -> Iterator[tuple[Leaf, Inverse]]:
        """Yield every layer that has a module, and its way back."""
        for leaf in self.layers():
            with in_place(printable(leaf[1].place)):
                way = self._invert(*leaf)
            yield leaf, way

    def _invert(self, path: str, layer: LayerSpec) -> Inverse:
        own = self._stored_in(layer)
        arrays = {array.path: array for held in own.values() for array in held.values()}
        summed = {
            array.path
            for inner in layer.walk()
            for name, array in own.get(inner.path, {}).items()
            if is_summed(inner, name, own[inner.path])
        }

        def build(values: Mapping[str, Any]) -> Mapping[str, Tensor]:
            for array in summed:
                values[array][len(values[array]) // 2 :] = 0
            return self._tensors_of(path, layer, values)

        return Inverse(**vars(find_origins(build, arrays)), summed=frozenset(summed))

    def read(self, path: str, layer: LayerSpec) -> Mapping[str, Tensor]:
        """Build a layer with the weights of the file; return its tensors."""
        own = self._stored_in(layer)
        values = {one.path: one.read() for held in own.values() for one in held.values()}
        return self._tensors_of(path, layer, values, self.read_as)

    def _stored_in(self, layer: LayerSpec) -> dict[LayerPath, Mapping[str, StoredArray]]:
        stored = self.weights.stored
        return {one.path: stored[one.path] for one in layer.walk() if one.path in stored}

    def _tensors_of(
        self,
        path: str,
        layer: LayerSpec,
        values: Mapping[str, Any],
        dtype: np.dtype[Any] | None = None,
    ) -> dict[str, Tensor]:
        """Build a layer of these arrays; return its tensors by their names in the whole model."""
        layers, stored = {}, self._stored_in(layer)
        for one in layer.walk():
            if one.path in stored:
                weights = {name: values[array.path] for name, array in stored[one.path].items()}
                layers[one.path] = replace(one, weights=self.weights.layout.join(one, weights))
        filled = replace_layers(layer, layers)
        module = convert_layer(filled if dtype is None else with_dtype(filled, dtype))
        start = f"{path}." if path else ""
        tensors = module.state_dict(keep_vars=True)
        return {start + name: tensor for name, tensor in tensors.items()}


def _have_same_values(array: StoredArray, other: StoredArray) -> bool:
    """Tell whether two arrays hold the same values, which are not all alike as fresh ones are."""
    if (array.shape, array.stored_as) != (other.shape, other.stored_as):
        return False
    first, second = array.read(), other.read()
    return first.tobytes() == second.tobytes() and len(np.unique(first)) > 1


def locate(container: Container, *, config: PathLike | None, cut: Cut = NO_CUT) -> Located:
    """Find the weights of the model in a container, or those of the part that ``cut`` bounds.

    Raises:
        K2TError: as ``readers.read_model``.
    """
    reading = infer_shapes(parse(container, config=config, cut=cut))
    return locate_in(read_weights(reading, values=False))


def locate_in(reading: Reading) -> Located:
    """Find the weights of a model that is read.

    Raises:
        K2TError: everything that is not supported, together.
    """
    reading.check()
    if reading.located is None:
        raise RuntimeError("the weights were not located")
    spec = reading.spec
    if any(layer.class_name not in SCHEMA for layer in spec.root.walk()):
        spec = complete_shapes(spec)
    return Located(spec, reading.located)
