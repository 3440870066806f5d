"""The tensors that a right port has for each layer: those of the layer's own torch module.

The builders of ``layers`` are given running numbers in place of weights, which tells where each
element of a tensor comes from, so that a port's tensors can be put back into Keras' layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.porting.call_graph import place_of
from keras2torch_birnn.porting.changes import Key
from keras2torch_birnn.schema.training_rules import with_training_rules
from keras2torch_birnn.spec import Array, LayerSpec, ModelSpec
from keras2torch_birnn.verification.layer_check import calls_of

_SUFFIX = "_l0"


@dataclass(frozen=True, eq=False)
class Leaf:
    """A layer with weights, or one direction of a Bidirectional.

    ``path``: of the layer that the user sees; ``key``: in the reference. ``tensors``: the right
    values by torch's name, without the number of a recurrent layer; ``origins``: for each element
    its number among the values of all weights, or -1.
    """

    path: str
    key: Key
    layer: LayerSpec
    tensors: Mapping[str, Array]
    origins: Mapping[str, Array]

    @property
    def name(self) -> str:
        """The layer's path; of a Bidirectional with the direction."""
        return self.key[0]

    def with_tensors(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Return Keras' weights that give these tensors; those of others stay right."""
        flat, shapes = _flatten(self.layer.weights)
        flat = flat.copy()
        for role, values in tensors.items():
            origin = self.origins[role].reshape(-1)
            known = origin >= 0
            flat[origin[known]] = values.reshape(-1)[known]
        return _unflatten(flat, shapes)


def find_leaves(spec: ModelSpec) -> tuple[Leaf, ...]:
    """Return the layers with weights of a model, in the order of their first calls."""
    root = with_training_rules(spec.root, spec.generation)
    found: dict[Key, Leaf] = {}
    for path, layer in calls_of(root, ""):
        place = place_of(path)
        for key, inner in _inner_layers(place, layer):
            if key not in found and inner.weights:
                leaf = _make_leaf(place, key, inner)
                if leaf is not None:
                    found[key] = leaf
    return tuple(found.values())


def _inner_layers(place: str, layer: LayerSpec) -> Iterator[tuple[Key, LayerSpec]]:
    while layer.class_name == "TimeDistributed":
        layer = layer.parts["layer"]
    if layer.class_name == "Bidirectional":
        for part, half in layer.parts.items():
            yield (f"{place}/{part}", half.class_name), half
    elif layer.graph is None:
        yield (place, layer.class_name), layer


def _flatten(weights: Mapping[str, Array]) -> tuple[Array, dict[str, tuple[int, ...]]]:
    shapes = {name: tuple(array.shape) for name, array in weights.items()}
    flat = [np.asarray(array, np.float64).reshape(-1) for array in weights.values()]
    return np.concatenate(flat), shapes


def _unflatten(flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    found, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=np.int64))
        found[name] = flat[start : start + size].reshape(shape)
        start += size
    return found


def _make_leaf(path: str, key: Key, layer: LayerSpec) -> Leaf | None:
    """Build the layer with numbers as weights; None if that is not possible for this layer."""
    flat, shapes = _flatten(layer.weights)
    numbers = np.arange(1, len(flat) + 1, dtype=np.float64)
    try:
        module = convert_layer(replace(layer, weights=_unflatten(numbers, shapes)))
    except (KeyError, TypeError, ValueError):  # a plugin's layer may need weights that make sense
        return None
    origins: dict[str, Array] = {}
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            origin = _to_origin(tensor, len(flat))
            if origin is not None:
                origins[name.replace(_SUFFIX, "").replace("_reverse", "")] = origin
    tensors = {role: np.where(at >= 0, flat[at], 0.0) for role, at in origins.items()}
    return Leaf(path, key, layer, tensors, origins)


def _to_origin(tensor: Any, count: int) -> Array | None:
    values = tensor.detach().to(torch.float64).numpy()
    whole = np.rint(values)
    if not ((values == whole) & (whole >= 0) & (whole <= count)).all():
        return None
    origin: Array = whole.astype(np.int64) - 1
    return origin
