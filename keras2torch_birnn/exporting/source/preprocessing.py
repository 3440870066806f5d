"""Source text of layers that Keras calls preprocessing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras2torch_birnn.exporting.source.activation import TORCH
from keras2torch_birnn.exporting.source.emission import (
    Emission,
    Emit,
    Helper,
    literal,
    refuse,
    same_names,
)
from keras2torch_birnn.schema import normalized_axes
from keras2torch_birnn.spec import LayerSpec

_LAYERS = "keras2torch_birnn.layers.preprocessing"


def _normalization(layer: LayerSpec, name: str) -> Emission:
    config, shape = layer.config, layer.input_shape
    if not isinstance(shape, tuple):
        raise refuse(layer, "an input of unknown rank")
    axes = normalized_axes(config, len(shape))

    def zeros(key: str) -> str:
        found = layer.weights.get(key)
        sizes = list(np.shape(config[key]) if found is None else found.shape)
        sizes = [1] * (len(axes) - len(sizes)) + sizes
        placed = [int(sizes[axes.index(i)]) if i in axes else 1 for i in range(len(shape))]
        return f"torch.zeros({literal(tuple(placed))})"

    invert = literal(bool(config["invert"]))
    return Emission(
        lambda site: f"self.{name}({site.x})",
        {name: f"Normalization({zeros('mean')}, {zeros('variance')}, invert={invert})"},
        same_names(name, ["mean", "variance"]),
        (Helper(_LAYERS, "Normalization"), TORCH),
    )


def _rescaling(layer: LayerSpec, name: str) -> Emission:
    values = [layer.config["scale"], layer.config["offset"]]
    if any(np.ndim(value) for value in values):
        raise refuse(layer, "lists of numbers")
    scale, offset = (literal(float(np.float32(value))) for value in values)
    return Emission(lambda site: f"{site.x}.float() * {scale} + {offset}")


EMITTERS: Mapping[str, Emit] = {"Normalization": _normalization, "Rescaling": _rescaling}
