"""Keras' weights in the tensors of a converted module, to read them and to write them.

``layers.origins`` finds where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import UnsupportedOptionError, UsageError, printable
from keras2torch_birnn.layers.origins import Copies, find_origins
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.layers.training_terms import NoValues, replace_weights
from keras2torch_birnn.spec import Array, LayerSpec

# Keys of the parts on the way to a weight's layer, then the weight's name.
Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class WeightView:
    """A weight whose elements are anywhere in one or several tensors of a module.

    ``parts``: elements of tensors, and their positions in the weight; or the tensor that is the
    weight, element by element. ``shape``: Keras'.
    """

    parts: tuple[Copies, ...] | str
    shape: tuple[int, ...]

    def names(self) -> list[str]:
        """Return the names of the tensors that hold the weight."""
        if isinstance(self.parts, str):
            return [self.parts]
        return [one.tensor for one in self.parts]

    def learns(self, module: nn.Module) -> bool:
        """Tell whether it is trained, or a part of it; one that is computed from others, too."""
        with torch.enable_grad():
            return any(find_tensor(module, name).requires_grad for name in self.names())

    def values(self, module: nn.Module) -> list[Tensor]:
        """Return all elements of the weight in any order; differentiable."""
        if isinstance(self.parts, str):
            return [find_tensor(module, self.parts)]
        found = []
        for one in self.parts:
            tensor = find_tensor(module, one.tensor)
            whole = len(one.elements) == tensor.numel()  # which takes no time to pick
            found.append(tensor if whole else _elements(tensor, one.elements))
        return found

    def read(self, module: nn.Module) -> Tensor:
        """Return the weight in Keras' layout; differentiable."""
        if isinstance(self.parts, str):
            return find_tensor(module, self.parts)
        found = [_elements(find_tensor(module, one.tensor), one.elements) for one in self.parts]
        places = np.argsort(np.concatenate([one.positions for one in self.parts]))
        return _elements(torch.cat(found), places).reshape(self.shape)

    def write(self, module: nn.Module, value: Tensor) -> None:
        """Write the weight, given in Keras' layout."""
        if isinstance(self.parts, str):
            find_parameter(module, self.parts).data.copy_(value)
            return
        for one in self.parts:
            data = find_parameter(module, one.tensor).data
            flat = data.reshape(-1)
            flat[torch.from_numpy(one.elements).to(data.device)] = _elements(value, one.positions)
            data.copy_(flat.reshape(data.shape))


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

        return convert_layer(replace_weights(layer, value)).state_dict(keep_vars=True)

    origins = find_origins(build, arrays)
    held: dict[Path, tuple[Copies, ...] | str] = {**origins.copies, **origins.whole}
    for path, array in arrays.items():
        positions = [one.positions for one in origins.copies.get(path, ())]
        places = np.sort(np.concatenate([np.empty(0, np.int64), *positions]))
        if path not in origins.whole and not np.array_equal(places, np.arange(array.size)):
            raise UnsupportedOptionError(
                f"{printable('/'.join(path))} is not copied into the module, but computed with",
                "write its regularizer or constraint in your own training step",
                place=layer.place,
            )
    return {path: WeightView(held[path], array.shape) for path, array in arrays.items()}


def _walk(layer: LayerSpec, path: Path = ()) -> list[tuple[Path, LayerSpec]]:
    """List a layer and its parts, each with the keys on the way to it."""
    inner = [one for key, part in layer.parts.items() for one in _walk(part, (*path, key))]
    return [(path, layer), *inner]
