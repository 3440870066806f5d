"""Layers of the source, one after the other: where their weights are, and what is new in them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from keras2torch_birnn.errors import WeightMismatchError, in_place, printable
from keras2torch_birnn.layers.graph import leaf_layers
from keras2torch_birnn.plugins.checks import complete_shapes
from keras2torch_birnn.readers.config.policies import common_dtype
from keras2torch_birnn.readers.containers import open_container
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.steps import PathLike, infer_shapes, parse
from keras2torch_birnn.readers.weights.load_weights import (
    LocatedWeights,
    find_weights,
)
from keras2torch_birnn.readers.weights.slots import Key, change_layers, replace_layers
from keras2torch_birnn.readers.weights.spectral import is_spectral
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.schema.training_rules import with_training_rules
from keras2torch_birnn.spec import NO_CUT, Cut, LayerSpec, ModelSpec, with_dtype
from keras2torch_birnn.writers.inverse import Inverse, invert, tensors_of
from keras2torch_birnn.writers.new_values import Model, Piece, new_pieces, same_bits

# The path of a module, the keys of its layer, and the layer.
Leaf: TypeAlias = tuple[str, Key, LayerSpec]


@dataclass(frozen=True)
class Located:
    """A model in an open container: its spec without weights, and where they are."""

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
        weights = self.weights
        for leaf in self.layers():
            with in_place(printable(leaf[2].place)):
                way = invert(*leaf, weights.stored, weights.layout)
            yield leaf, way

    def read(self, path: str, owner: Key, layer: LayerSpec) -> Mapping[str, Tensor]:
        """Build a layer with the weights of the file; return its tensors."""

        def change(layer: LayerSpec, arrays: Mapping[str, StoredArray]) -> LayerSpec:
            weights: dict[str, Any] = {name: array.read() for name, array in arrays.items()}
            return replace(layer, weights=self.weights.layout.join(layer, weights))

        own = {k: v for k, v in self.weights.stored.items() if k[: len(owner)] == owner}
        return tensors_of(path, with_dtype(change_layers(layer, own, change, owner), self.read_as))


def _have_same_values(array: StoredArray, other: StoredArray) -> bool:
    """Tell whether two arrays hold the same values, which are not all alike as fresh ones are."""
    if (array.shape, array.stored_as) != (other.shape, other.stored_as):
        return False
    first, second = array.read_stored(), other.read_stored()
    return first.tobytes() == second.tobytes() and len(np.unique(first)) > 1


def locate(
    container: Container,
    *,
    config: PathLike | None,
    masked_steps: str | None,
    cut: Cut = NO_CUT,
) -> Located:
    """Find the weights of the model in a container, or those of the part that ``cut`` bounds.

    Raises:
        K2TError: as ``readers.read_model``.
    """
    reading = infer_shapes(parse(container, config=config, masked_steps=masked_steps, cut=cut))
    reading.check()
    found = find_weights(
        reading.root, container, reading.parsing, reading.masked_steps, reading.whole
    )
    spec = replace(reading.spec, root=found.root)
    if any(layer.class_name not in SCHEMA for layer in found.root.walk()):
        filled = {
            row.owner: replace(
                row.layer,
                weights=found.layout.join(row.layer, {n: a.read() for n, a in row.arrays.items()}),
            )
            for row in found.rows
        }
        spec = complete_shapes(replace(spec, root=replace_layers(found.root, filled)))
    return Located(spec, found)


def layer_pieces(located: Located, model: Model) -> Iterator[Piece]:
    """Yield what has to be written, layer by layer.

    Raises:
        WeightMismatchError: there is no place in the file for what was trained.
    """
    written: dict[str, int] = {}
    for leaf, inverse in located.inverses():
        *_, layer = leaf
        with in_place(printable(layer.place)):
            if any(map(is_spectral, layer.walk())):
                _check_unchanged(located.read(*leaf), model)
            if inverse.computed:
                _check_computed(inverse, located.read(*leaf), model)
            sums: dict[str, int] = {}
            for piece in new_pieces(inverse, located.arrays, model):
                sum_before = sums.get(piece.array.path, 0)
                sums[piece.array.path] = zlib.crc32(piece.values.tobytes(), sum_before)
                yield piece
            for array in (*inverse.copies, *inverse.whole):
                now = sums.get(array, 0)
                if written.setdefault(array, now) != now:
                    raise _differ(array)
    for one, other in located.twins():
        if written.get(one.path) != written.get(other.path):
            raise _differ(other.path)


def _differ(path: str) -> WeightMismatchError:
    return WeightMismatchError(
        "two layers of OUT are one in Keras, but differ",
        "give both the same weights; a layer that is called in several places trains as one there "
        "(docs/training.md shows how to share it here)",
        place=printable(path),
    )


def _check_unchanged(read: Mapping[str, Tensor], model: Model) -> None:
    """Refuse changed weights of a layer whose kernel Keras normalizes in training."""
    for name, tensor in read.items():
        if not _reads_as(tensor, model.tensors[name], rounding=model.rounding):
            raise WeightMismatchError(
                f"{printable(name)} was changed, but a layer in a SpectralNormalization "
                "cannot hold what was trained without it",
                "train it in Keras, or save the layer in it by itself before",
            )


def _check_computed(inverse: Inverse, read: Mapping[str, Tensor], model: Model) -> None:
    """Refuse changed elements that are computed from weights, not copied."""
    for name, elements in inverse.computed.items():
        at = torch.from_numpy(elements)
        before = read[name].detach().reshape(-1)[at]
        now = model.tensors[name].reshape(-1)[at]
        if not same_bits(before.to(now.dtype), now).all():
            raise WeightMismatchError(
                f"{printable(name)} is computed from the weights of the file, and was changed",
                "only modules that keep their weights as they are can be written back",
            )


def check_written(
    path: PathLike,
    model: Model,
    *,
    config: PathLike | None,
    masked_steps: str | None,
    cut: Cut = NO_CUT,
) -> None:
    """Read a written model again, and compare it with the trained one, tensor by tensor.

    Raises:
        WeightMismatchError: it is not the same.
    """
    with open_container(path) as container:
        located = locate(container, config=config, masked_steps=masked_steps, cut=cut)
        for leaf in located.layers():
            for name, tensor in located.read(*leaf).items():
                if not _reads_as(tensor, model.tensors[name], rounding=model.rounding):
                    raise WeightMismatchError(
                        f"{printable(name)} would not be read back as it is in OUT",
                        "nothing was written; please report it",
                        place=printable(leaf[2].place),
                    )


def _reads_as(tensor: Tensor, wanted: Tensor, *, rounding: bool) -> bool:
    if not wanted.is_floating_point():  # BatchNormalization's count of batches
        return True
    return _equal(tensor.detach(), wanted, rounding=rounding)


def _equal(read: Tensor, wanted: Tensor, *, rounding: bool) -> bool:
    if read.shape != wanted.shape:
        return False
    now = read.to(wanted.dtype)
    same = same_bits(now, wanted) | ((now == 0) & (wanted == 0))  # a sum has no negative zero
    if rounding:
        same |= torch.isclose(now, wanted, rtol=_ROUNDED[0], atol=_ROUNDED[1], equal_nan=True)
    return bool(same.all())


# The largest rounding errors of bfloat16 (relative), and of a denormal float16 (absolute).
_ROUNDED = (2.0**-8, 2.0**-25)
