"""The way back of a layer: which element of the file every element of its torch tensors is.

It is not written down a second time. The builders of ``layers`` get running numbers in place of
weights, so what comes out of them says where every element came from. A second run with random
numbers tells copies from elements that were computed, such as the sum of two biases. Large
matrices are not numbered: a ``LazyArray`` tells its columns and whether it is transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from keras2torch_birnn.functional.parameters import lazy_source
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.lazy_array import LazyArray
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.weights.layouts import Layout, is_summed
from keras2torch_birnn.readers.weights.load_weights import StoredLayer, may_wait
from keras2torch_birnn.readers.weights.slots import Key, change_layers
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.spec import Array, LayerSpec

Positions: TypeAlias = npt.NDArray[np.int64]
# Random numbers are integers of so many bits: sums of two are exact, and equal no third by chance.
_BITS = 51
_SEED = 0x6B3274


@dataclass(frozen=True)
class Copies:
    """Elements of a tensor, and the elements of an array in the file that they are copies of."""

    tensor: str
    elements: Positions
    positions: Positions


@dataclass(frozen=True)
class Fixed:
    """Elements of a tensor that are the same whatever the weights are, such as a second bias."""

    tensor: str
    elements: Positions
    values: Array


@dataclass(frozen=True)
class Inverse:
    """The way back of one layer.

    ``copies`` and ``matrices``: path of an array in the file -> the tensors that it is in; a tensor
    of ``matrices`` has the columns of its LazyArray, in that order. ``summed``: paths of arrays
    whose second half is added to the first. ``computed``: tensor -> elements that are no copies.
    ``shapes``: those of all tensors.
    """

    copies: Mapping[str, tuple[Copies, ...]]
    matrices: Mapping[str, tuple[tuple[str, LazyArray], ...]]
    fixed: tuple[Fixed, ...]
    summed: frozenset[str]
    computed: Mapping[str, Positions]
    shapes: Mapping[str, tuple[int, ...]]


def invert(
    layer: LayerSpec,
    owner: Key,
    stored: Mapping[Key, Mapping[str, StoredArray]],
    layout: Layout,
    *,
    waiting: bool,
) -> Inverse:
    """Find the way back of a layer that ``convert_layer`` builds.

    owner: its keys from the model on. stored, layout: as in ``LocatedWeights``. waiting: large
    matrices may be left in the file.
    """
    own = {key: arrays for key, arrays in stored.items() if key[: len(owner)] == owner}
    numbering = _number(layer, owner, own, layout, waiting=waiting)
    numbers = np.arange(1, len(numbering.random) + 1, dtype=np.float64)
    running, random = (
        numbering.build(layer, owner, own, layout, one) for one in (numbers, numbering.random)
    )
    found = _Found()
    for name, tensor in running.items():
        lazy = lazy_source(tensor)
        if lazy is None:
            numbering.trace(name, _values(tensor), _values(random[name]), found)
        else:
            path = lazy.source.path if isinstance(lazy.source, StoredArray) else ""
            found.matrices.setdefault(path, []).append((name, lazy))
    return Inverse(
        {path: tuple(copies) for path, copies in found.copies.items()},
        {path: tuple(pairs) for path, pairs in found.matrices.items()},
        tuple(found.fixed),
        numbering.summed,
        found.computed,
        {name: tuple(tensor.shape) for name, tensor in running.items()},
    )


class _Found:
    """Parts of an ``Inverse`` while it is made."""

    def __init__(self) -> None:
        self.copies: dict[str, list[Copies]] = {}
        self.matrices: dict[str, list[tuple[str, LazyArray]]] = {}
        self.fixed: list[Fixed] = []
        self.computed: dict[str, Positions] = {}


@dataclass(frozen=True)
class _Numbering:
    """Numbers for the elements of arrays: 1, 2, ... over all of them, in the order of ``paths``.

    ``starts``: elements before each array, and of all. ``random``: a number for each element.
    ``lazy``: arrays without numbers.
    """

    paths: tuple[str, ...]
    starts: Positions
    random: Array
    lazy: frozenset[str]
    summed: frozenset[str]

    def build(
        self,
        layer: LayerSpec,
        owner: Key,
        own: Mapping[Key, Mapping[str, StoredArray]],
        layout: Layout,
        numbers: Array,
    ) -> Mapping[str, Tensor]:
        """Build the layer with these numbers as its weights; return its tensors."""

        def values(array: StoredArray) -> Any:
            if array.path in self.lazy:
                return LazyArray.whole(array)
            at = self.paths.index(array.path)
            flat = numbers[self.starts[at] : self.starts[at + 1]].copy()
            if array.path in self.summed:
                flat[len(flat) // 2 :] = 0
            return flat.reshape(array.shape)

        def change(one: LayerSpec, arrays: Mapping[str, StoredArray]) -> LayerSpec:
            weights = {name: values(array) for name, array in arrays.items()}
            return replace(one, weights=layout.join(one, weights))

        module: nn.Module = convert_layer(change_layers(layer, own, change, owner))
        return dict(module.state_dict(keep_vars=True))

    def trace(self, name: str, running: Array, random: Array, found: _Found) -> None:
        """Sort the elements of one tensor into copies, fixed ones, and computed ones."""
        whole = (running >= 1) & (running <= len(self.random)) & (running == np.rint(running))
        number = np.where(whole, running, 1).astype(np.int64) - 1
        copied = whole.copy()
        copied[whole] = self.random[number[whole]] == random[whole]
        same = ~copied & ((running == random) | (np.isnan(running) & np.isnan(random)))
        _note(np.flatnonzero(~copied & ~same), lambda at: found.computed.__setitem__(name, at))
        _note(
            np.flatnonzero(same), lambda at: found.fixed.append(Fixed(name, at, running[at].copy()))
        )
        elements = np.flatnonzero(copied)
        owners = np.searchsorted(self.starts, number[elements], side="right") - 1
        for at in np.unique(owners):
            some = elements[owners == at]
            copies = Copies(name, some, number[some] - self.starts[at])
            found.copies.setdefault(self.paths[at], []).append(copies)


def _note(elements: Positions, keep: Callable[[Positions], object]) -> None:
    if len(elements):
        keep(elements)


def _number(
    layer: LayerSpec,
    owner: Key,
    own: Mapping[Key, Mapping[str, StoredArray]],
    layout: Layout,
    *,
    waiting: bool,
) -> _Numbering:
    lazy: set[str] = set()
    summed: set[str] = set()

    def look(one: LayerSpec, arrays: Mapping[str, StoredArray]) -> LayerSpec:
        for name, array in arrays.items():
            if (
                waiting
                and one.class_name in SCHEMA
                and may_wait(StoredLayer(owner, one, arrays), name)
            ):
                lazy.add(array.path)
            if is_summed(one, name, arrays):
                summed.add(array.path)
        return one

    change_layers(layer, own, look, owner)
    arrays = {a.path: a for held in own.values() for a in held.values() if a.path not in lazy}
    sizes = [int(np.prod(array.shape, dtype=np.int64)) for array in arrays.values()]
    starts = np.array([0, *accumulate(sizes)], np.int64)
    drawn = np.random.default_rng(_SEED).integers(1, 1 << _BITS, starts[-1]).astype(np.float64)
    return _Numbering(tuple(arrays), starts, drawn, frozenset(lazy), frozenset(summed))


def _values(tensor: Tensor) -> Array:
    """Return all values of a tensor, flat."""
    return tensor.detach().to(torch.float64).reshape(-1).numpy()
