"""Keras' weights in the tensors of a converted module, to read them and to write them.

Where they are is not written down: the builder of the layer gets running numbers in place of its
weights, and the tensors that come out say where every element went (see ``writers.inverse``). Large
matrices are not numbered; a ``LazyArray`` tells whether it was transposed, and its columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import UnsupportedOptionError, UsageError, printable
from keras2torch_birnn.functional.parameters import lazy_source
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.layers.training_terms import NoValues, map_weights
from keras2torch_birnn.lazy_array import LEAST_BYTES, LazyArray
from keras2torch_birnn.spec import Array, LayerSpec

# Keys of the parts on the way to a weight's layer, then the weight's name.
Path: TypeAlias = tuple[str, ...]
# Random numbers of so many bits: no other number equals one by chance.
_BITS = 51
# Weights that builders can take without their values, by class.
_LAZY: Mapping[str, tuple[str, ...]] = {
    "Embedding": ("embeddings",),
    "Dense": ("kernel",),
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN"), ("kernel", "recurrent_kernel")),
}


@dataclass(frozen=True)
class Permuted:
    """A weight that is one whole tensor with its axes in another order.

    ``axes``: those of the tensor, in Keras' order. ``order``: the place of each of Keras' last
    indices, such as the gates of a GRU; None if it is the same.
    """

    tensor: str
    axes: tuple[int, ...]
    order: tuple[int, ...] | None = None

    def names(self) -> list[str]:
        """Return the names of the tensors that hold the weight."""
        return [self.tensor]

    def values(self, module: nn.Module) -> list[Tensor]:
        """Return all elements of the weight in any order; differentiable."""
        return [find_tensor(module, self.tensor)]

    @property
    def shares_memory(self) -> bool:
        """Tell whether what is read shares the memory of its tensor."""
        return self.order is None

    def read_from(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the weight in Keras' layout; differentiable."""
        value = tensors[self.tensor].permute(self.axes)
        return value if self.order is None else value[..., list(self.order)]

    def write_into(self, tensors: Mapping[str, Tensor], value: Tensor) -> None:
        """Write the weight, given in Keras' layout."""
        into = tensors[self.tensor].data.permute(self.axes)
        if self.order is None:
            into.copy_(value)
        else:
            into[..., list(self.order)] = value


@dataclass(frozen=True, eq=False)
class Scattered:
    """A weight whose elements are anywhere in one or several tensors.

    ``parts``: tensor, its elements, and their places in the weight. ``shape``: Keras'.
    """

    parts: tuple[tuple[str, Array, Array], ...]
    shape: tuple[int, ...]

    def names(self) -> list[str]:
        """Return the names of the tensors that hold the weight."""
        return [name for name, _, _ in self.parts]

    def values(self, module: nn.Module) -> list[Tensor]:
        """Return all elements of the weight in any order; differentiable."""
        return [_elements(find_tensor(module, name), elements) for name, elements, _ in self.parts]

    @property
    def shares_memory(self) -> bool:
        """Tell whether what is read shares the memory of its tensors."""
        return False

    def read_from(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the weight in Keras' layout; differentiable."""
        found = [_elements(tensors[name], elements) for name, elements, _ in self.parts]
        places = np.argsort(np.concatenate([places for _, _, places in self.parts]))
        return _elements(torch.cat(found), places).reshape(self.shape)

    def write_into(self, tensors: Mapping[str, Tensor], value: Tensor) -> None:
        """Write the weight, given in Keras' layout."""
        for name, elements, places in self.parts:
            data = tensors[name].data
            into = data.reshape(-1)
            into[torch.from_numpy(elements).to(data.device)] = _elements(value, places)
            data.copy_(into.reshape(data.shape))


WeightView: TypeAlias = Permuted | Scattered


def learns(view: WeightView, module: nn.Module) -> bool:
    """Tell whether a weight, or a part of it, is trained; one that is computed from others too."""
    with torch.enable_grad():
        return any(find_tensor(module, name).requires_grad for name in view.names())


def read(view: WeightView, module: nn.Module) -> Tensor:
    """Return a weight of a module in Keras' layout; differentiable."""
    return view.read_from({name: find_tensor(module, name) for name in view.names()})


def write(view: WeightView, module: nn.Module, value: Tensor) -> None:
    """Write a weight of a module, given in Keras' layout."""
    view.write_into({name: find_parameter(module, name) for name in view.names()}, value)


def _elements(tensor: Tensor, places: Array) -> Tensor:
    return tensor.reshape(-1)[torch.from_numpy(places).to(tensor.device)]


def find_tensor(module: nn.Module, name: str) -> Tensor:
    """Return a tensor of a module by its name in the state_dict."""
    path, _, last = name.rpartition(".")
    found = getattr(module.get_submodule(path), last)
    if not isinstance(found, Tensor):
        raise UsageError(f"{name} is no tensor any more", "convert the model again")
    return found


def find_parameter(module: nn.Module, name: str) -> nn.Parameter:
    """Return a parameter of a module.

    Raises:
        UsageError: it is none any more, but computed.
    """
    found = find_tensor(module, name)
    if not isinstance(found, nn.Parameter):
        raise UsageError(
            f"{name} is no parameter, so it cannot be constrained",
            "remove the parametrization of torch, or the constraint",
        )
    return found


def find_views(layer: LayerSpec, wanted: Sequence[Path]) -> dict[Path, WeightView]:
    """Find these weights of a layer in the tensors of its module.

    Raises:
        UnsupportedOptionError: a module of a plugin computes its parameters from the weight.
    """
    numbering = _Numbering(layer, frozenset(wanted))
    running = np.arange(1, numbering.count + 1, dtype=np.float64)
    random = np.random.default_rng(0).integers(1, 1 << _BITS, numbering.count).astype(np.float64)
    first, second = (numbering.build(layer, numbers) for numbers in (running, random))
    found: dict[Path, WeightView] = {}
    parts: dict[Path, list[tuple[str, Array, Array]]] = {path: [] for path in wanted}
    for name, tensor in first.items():
        lazy = lazy_source(tensor)
        if lazy is not None:
            found[numbering.lazy[id(lazy.source)]] = view_of_columns(name, lazy)
            continue
        if not numbering.count:  # all wanted weights are large
            continue
        values, others = (_flat(one[name]) for one in (first, second))
        whole = (values >= 1) & (values <= numbering.count) & (values == np.rint(values))
        numbers = np.where(whole, values, 1).astype(np.int64) - 1
        copied = np.flatnonzero(whole & (random[numbers] == others))
        for path, (start, stop) in numbering.ranges.items():
            own = copied[(numbers[copied] >= start) & (numbers[copied] < stop)]
            if len(own):
                parts[path].append((name, own, numbers[own] - start))
    shapes = {name: tuple(tensor.shape) for name, tensor in first.items()}
    for path, (start, stop) in numbering.ranges.items():
        places = np.concatenate([np.empty(0, np.int64), *(p for _, _, p in parts[path])])
        if not np.array_equal(np.sort(places), np.arange(stop - start)):
            raise UnsupportedOptionError(
                f"{printable('/'.join(path))} is not copied into the module, but computed with",
                "write its regularizer or constraint in your own training step",
                place=layer.place,
            )
        found[path] = view_of_elements(tuple(parts[path]), numbering.shapes[path], shapes)
    return found


class _Numbering:
    """Numbers for the elements of the wanted weights of a layer; large matrices have none."""

    def __init__(self, layer: LayerSpec, wanted: frozenset[Path]) -> None:
        self.count = 0
        self.ranges: dict[Path, tuple[int, int]] = {}
        self.shapes: dict[Path, tuple[int, ...]] = {}
        self.lazy = {
            id(part.weights[name]): (*path, name)
            for path, part in _walk(layer)
            for name in _LAZY.get(part.class_name.removesuffix("Cell"), ())
            if name in part.weights and part.weights[name].size * 8 >= LEAST_BYTES
        }

        def number(path: Path, array: NoValues) -> NoValues:
            if path in wanted and id(array) not in self.lazy:
                self.ranges[path] = (self.count, self.count + array.size)
                self.shapes[path] = array.shape
                self.count += array.size
            return array

        map_weights(layer, number)

    def build(self, layer: LayerSpec, numbers: Array) -> Mapping[str, Tensor]:
        """Build the layer with these numbers as its weights; return its tensors."""

        def values(path: Path, array: NoValues) -> Any:
            if id(array) in self.lazy:
                return LazyArray.whole(array)
            if path not in self.ranges:
                kind = np.float64 if array.dtype.kind == "f" else array.dtype
                return np.zeros(array.shape, kind)
            start, stop = self.ranges[path]
            return numbers[start:stop].reshape(array.shape).copy()

        return dict(convert_layer(map_weights(layer, values)).state_dict(keep_vars=True))


def _walk(layer: LayerSpec, path: Path = ()) -> list[tuple[Path, LayerSpec]]:
    """List a layer and its parts, each with the keys on the way to it."""
    inner = [one for key, part in layer.parts.items() for one in _walk(part, (*path, key))]
    return [(path, layer), *inner]


def _flat(tensor: Tensor) -> Array:
    return tensor.detach().to(torch.float64).reshape(-1).numpy()


def view_of_columns(name: str, lazy: LazyArray) -> Permuted:
    """Describe a weight whose columns are all in one tensor."""
    columns = np.concatenate([np.arange(first, last) for first, last in lazy.columns])
    order = np.argsort(columns)
    same = np.array_equal(order, np.arange(len(order)))
    return Permuted(name, (1, 0) if lazy.transposed else (0, 1), None if same else tuple(order))


def view_of_elements(
    parts: tuple[tuple[str, Array, Array], ...],
    shape: tuple[int, ...],
    shapes: Mapping[str, tuple[int, ...]],
) -> WeightView:
    """Describe a weight as a permuted tensor if it is one, else by its elements."""
    name, elements, places = parts[0]
    size = int(np.prod(shapes[name], dtype=np.int64))
    if len(parts) == 1 and len(elements) == size and len(shapes[name]) == len(shape):
        flat = np.empty(size, np.int64)
        flat[elements] = places
        held = flat.reshape(shapes[name])
        wanted = np.arange(size).reshape(shape)
        for axes in permutations(range(len(shape))):
            if np.array_equal(held.transpose(axes), wanted):
                return Permuted(name, axes)
    return Scattered(parts, shape)
