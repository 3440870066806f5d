"""Source text of layers that Keras calls preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras2torch_birnn.exporting.source.activation import TORCH
from keras2torch_birnn.exporting.source.emission import (
    Emission,
    Emit,
    Helper,
    Site,
    arguments,
    literal,
    refuse,
    same_names,
)
from keras2torch_birnn.schema import normalized_axes
from keras2torch_birnn.schema.preprocessing import lookup_options, lookup_tokens
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
    return Emission(lambda site: f"{site.x} * {scale} + {offset}")


def encoder(helper: Helper, name: str, options: Sequence[Any], buffers: Sequence[str]) -> Emission:
    """Write a layer of integers as a module with plain options and buffers of its own."""

    def call(site: Site) -> str:
        given = [*site.args, *(f"{key}={value}" for key, value in site.kwargs.items())]
        return f"self.{name}({', '.join(given)})"

    text = f"{helper.name}({arguments(*options)})"
    return Emission(call, {name: text}, same_names(name, buffers), (helper,))


def _category_encoding(layer: LayerSpec, name: str) -> Emission:
    options = [layer.config["num_tokens"], layer.config["output_mode"]]
    return encoder(Helper(_LAYERS, "CategoryEncoding"), name, options, ["tokens"])


def _discretization(layer: LayerSpec, name: str) -> Emission:
    boundaries = tuple(map(float, layer.config["bin_boundaries"]))
    options = [boundaries, layer.config["output_mode"]]
    return encoder(Helper(_LAYERS, "Discretization"), name, options, ["boundaries", "tokens"])


def _integer_lookup(layer: LayerSpec, name: str) -> Emission:
    words, _ = lookup_tokens(layer.config)
    zeros = f"torch.zeros({len(words)}, dtype=torch.int64)"
    text = f"IntegerLookup({zeros}, {zeros}, {arguments(**lookup_options(layer.config))})"
    buffers = ["keys", "places", *["tokens"] * (layer.config["output_mode"] != "int")]
    return Emission(
        lambda site: f"self.{name}({site.x})",
        {name: text},
        same_names(name, buffers),
        (Helper(_LAYERS, "IntegerLookup"), TORCH),
    )


EMITTERS: Mapping[str, Emit] = {
    "Normalization": _normalization,
    "Rescaling": _rescaling,
    "CategoryEncoding": _category_encoding,
    "Discretization": _discretization,
    "IntegerLookup": _integer_lookup,
}
