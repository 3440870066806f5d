"""Keras' weights in the tensors of a converted module, to read them and to write them.

``layers.origins`` finds where they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import UnsupportedOptionError, UsageError, printable
from keras2torch_birnn.layers.origins import Copies, Key, Origins, Positions, find_origins
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.layers.training_terms import NoValues, map_weights
from keras2torch_birnn.spec import Array, LayerSpec

# Keys of the parts on the way to a weight's layer, then the weight's name.
Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Permuted:
    """A weight that is one whole tensor with its axes in another order.

    ``axes``: those of the tensor, in Keras' order.
    """

    tensor: str
    axes: tuple[int, ...]

    def names(self) -> list[str]:
        """Return the names of the tensors that hold the weight."""
        return [self.tensor]

    def values(self, module: nn.Module) -> list[Tensor]:
        """Return all elements of the weight in any order; differentiable."""
        return [find_tensor(module, self.tensor)]

    @property
    def shares_memory(self) -> bool:
        """Tell whether what is read shares the memory of its tensor."""
        return True

    def read_from(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the weight in Keras' layout; differentiable."""
        return tensors[self.tensor].permute(self.axes)

    def write_into(self, tensors: Mapping[str, Tensor], value: Tensor) -> None:
        """Write the weight, given in Keras' layout."""
        tensors[self.tensor].data.permute(self.axes).copy_(value)


@dataclass(frozen=True, eq=False)
class Scattered:
    """A weight whose elements are anywhere in one or several tensors.

    ``parts``: elements of tensors, and their positions in the weight. ``shape``: Keras'.
    """

    parts: tuple[Copies, ...]
    shape: tuple[int, ...]

    def names(self) -> list[str]:
        """Return the names of the tensors that hold the weight."""
        return [one.tensor for one in self.parts]

    def values(self, module: nn.Module) -> list[Tensor]:
        """Return all elements of the weight in any order; differentiable."""
        return [_elements(find_tensor(module, one.tensor), one.elements) for one in self.parts]

    @property
    def shares_memory(self) -> bool:
        """Tell whether what is read shares the memory of its tensors."""
        return False

    def read_from(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the weight in Keras' layout; differentiable."""
        found = [_elements(tensors[one.tensor], one.elements) for one in self.parts]
        places = np.argsort(_positions(self.parts))
        return _elements(torch.cat(found), places).reshape(self.shape)

    def write_into(self, tensors: Mapping[str, Tensor], value: Tensor) -> None:
        """Write the weight, given in Keras' layout."""
        for one in self.parts:
            data = tensors[one.tensor].data
            into = data.reshape(-1)
            elements = torch.from_numpy(one.elements).to(data.device)
            into[elements] = _elements(value, one.positions)
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
    arrays: dict[Path, Any] = {
        place: array
        for path, part in _walk(layer)
        for name, array in part.weights.items()
        if (place := (*path, name)) in wanted
    }

    def build(numbers: Mapping[Path, Any]) -> Mapping[str, Tensor]:
        def value(path: Path, array: NoValues) -> Any:
            kind = np.float64 if array.dtype.kind == "f" else array.dtype
            return numbers[path] if path in numbers else np.zeros(array.shape, kind)

        return convert_layer(map_weights(layer, value)).state_dict(keep_vars=True)

    origins = find_origins(build, arrays)
    for path, array in arrays.items():
        places = np.sort(_positions(origins.copies.get(path, ())))
        if path not in origins.whole and not np.array_equal(places, np.arange(array.size)):
            raise UnsupportedOptionError(
                f"{printable('/'.join(path))} is not copied into the module, but computed with",
                "write its regularizer or constraint in your own training step",
                place=layer.place,
            )
    return views_of(origins, arrays)


def _walk(layer: LayerSpec, path: Path = ()) -> list[tuple[Path, LayerSpec]]:
    """List a layer and its parts, each with the keys on the way to it."""
    inner = [one for key, part in layer.parts.items() for one in _walk(part, (*path, key))]
    return [(path, layer), *inner]


def views_of(origins: Origins[Key], weights: Mapping[Key, Any]) -> dict[Key, WeightView]:
    """Describe each weight."""
    views: dict[Key, WeightView] = {
        key: _view_of_elements(parts, weights[key].shape, origins.shapes)
        for key, parts in origins.copies.items()
    }
    for key, name in origins.whole.items():
        views[key] = Permuted(name, tuple(range(len(weights[key].shape))))
    return views


def _view_of_elements(
    parts: tuple[Copies, ...], shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> WeightView:
    """Describe a weight as a permuted tensor if it is one, else by its elements."""
    one = parts[0]
    inside = shapes[one.tensor]
    if len(parts) == 1 and len(one.elements) == math.prod(inside) and len(inside) == len(shape):
        flat = np.empty(len(one.elements), np.int64)
        flat[one.elements] = one.positions
        held = flat.reshape(inside)
        wanted = np.arange(len(flat)).reshape(shape)
        for axes in permutations(range(len(shape))):
            if np.array_equal(held.transpose(axes), wanted):
                return Permuted(one.tensor, axes)
    return Scattered(parts, shape)


def _positions(parts: tuple[Copies, ...]) -> Positions:
    """Return the positions in a weight of all its copies."""
    return np.concatenate([np.empty(0, np.int64), *(one.positions for one in parts)])
