"""The tensors that a right port has for each layer: those of the layer's own torch module.

``layers.origins`` tells where each element of a tensor comes from, so that a port's tensors can be
put back into Keras' layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from keras2torch_birnn.layers.origins import Copies, find_origins
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.porting.layer_call import Key
from keras2torch_birnn.schema.training_rules import with_training_rules
from keras2torch_birnn.spec import Array, LayerSpec, ModelSpec
from keras2torch_birnn.verification.layer_check import calls_of

_SUFFIX = "_l0"


@dataclass(frozen=True, eq=False)
class Leaf:
    """A layer with weights, or one direction of a Bidirectional.

    ``path``: of the layer that the user sees; ``key``: in the reference. ``tensors``: the right
    values by torch's name, without the number of a recurrent layer; ``copies``: where they are, for
    each weight of Keras.
    """

    path: str
    key: Key
    layer: LayerSpec
    tensors: Mapping[str, Array]
    copies: Mapping[str, tuple[Copies, ...]]

    @property
    def name(self) -> str:
        """The layer's path; of a Bidirectional with the direction."""
        return self.key[0]

    def with_tensors(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Return Keras' weights that give these tensors; those of others stay right."""
        weights = {name: np.array(right, np.float64) for name, right in self.layer.weights.items()}
        for name, copies in self.copies.items():
            flat = weights[name].reshape(-1)
            for one in copies:
                if one.tensor in tensors:
                    flat[one.positions] = tensors[one.tensor].reshape(-1)[one.elements]
        return weights


def find_leaves(spec: ModelSpec) -> tuple[Leaf, ...]:
    """Return the layers with weights of a model, in the order of their first calls."""
    root = with_training_rules(spec.root, spec.generation)
    found: dict[Key, Leaf] = {}
    for path, layer in calls_of(root, ""):
        place = "/".join(part.partition("#")[0] for part in path.split("/"))
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


def _make_leaf(path: str, key: Key, layer: LayerSpec) -> Leaf | None:
    """Find the right tensors of a layer; None if that is not possible for this layer."""

    def build(weights: Mapping[str, Array]) -> Mapping[str, Tensor]:
        tensors = convert_layer(replace(layer, weights=weights)).state_dict()
        return {
            name.replace(_SUFFIX, "").replace("_reverse", ""): tensor
            for name, tensor in tensors.items()
            if tensor.is_floating_point()
        }

    try:
        origins = find_origins(build, layer.weights)
        right = build({name: np.asarray(array) for name, array in layer.weights.items()})
    except (KeyError, TypeError, ValueError):  # a plugin's layer may need weights that make sense
        return None
    tensors = {
        name: tensor.double().numpy()
        for name, tensor in right.items()
        if name not in origins.computed
    }
    copies = {
        name: tuple(one for one in found if one.tensor in tensors)
        for name, found in origins.copies.items()
    }
    return Leaf(path, key, layer, tensors, copies)
