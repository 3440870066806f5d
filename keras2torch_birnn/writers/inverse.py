"""The way back of a layer: which element of the file every element of its torch tensors is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from keras2torch_birnn.layers.origins import Origins, find_origins
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.weights.layouts import Layout, is_summed
from keras2torch_birnn.readers.weights.slots import Key, change_layers, layers_by_owner
from keras2torch_birnn.spec import LayerSpec


@dataclass(frozen=True)
class Inverse(Origins[str]):
    """The way back of one layer; its weights are the paths of arrays in the file.

    ``summed``: paths of arrays whose second half is added to the first.
    """

    summed: frozenset[str]


def invert(
    path: str,
    owner: Key,
    layer: LayerSpec,
    stored: Mapping[Key, Mapping[str, StoredArray]],
    layout: Layout,
) -> Inverse:
    """Find the way back of a layer that ``convert_layer`` builds.

    path: of its module, which the names of tensors begin with. owner: its keys from the model on.
    stored, layout: as in ``LocatedWeights``.
    """
    own = {key: arrays for key, arrays in stored.items() if key[: len(owner)] == owner}
    summed: set[str] = set()

    for key, inner in layers_by_owner(layer, owner):
        for name, array in own.get(key, {}).items():
            if is_summed(inner, name, own[key]):
                summed.add(array.path)

    def build(values: Mapping[str, Any]) -> Mapping[str, Tensor]:
        for array in summed:
            values[array][len(values[array]) // 2 :] = 0

        def change(layer: LayerSpec, arrays: Mapping[str, StoredArray]) -> LayerSpec:
            weights = {name: values[array.path] for name, array in arrays.items()}
            return replace(layer, weights=layout.join(layer, weights))

        return tensors_of(path, change_layers(layer, own, change, owner))

    arrays = {array.path: array for held in own.values() for array in held.values()}
    found = find_origins(build, arrays)
    return Inverse(**vars(found), summed=frozenset(summed))


def tensors_of(path: str, layer: LayerSpec) -> dict[str, Tensor]:
    """Build a layer; return its tensors by the names that they have in the whole model."""
    start = f"{path}." if path else ""
    tensors = convert_layer(layer).state_dict(keep_vars=True)
    return {start + name: tensor for name, tensor in tensors.items()}
