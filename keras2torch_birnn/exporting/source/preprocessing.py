"""Source text of layers that Keras calls preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from keras2torch_birnn.exporting.source.code import Expression, call, code, member
from keras2torch_birnn.exporting.source.emission import Emission, Emit, copied, refuse
from keras2torch_birnn.schema import normalized_axes
from keras2torch_birnn.schema.preprocessing import lookup_options, lookup_tokens
from keras2torch_birnn.spec import LayerSpec


def _normalization(layer: LayerSpec, name: str) -> Emission:
    config, shape = layer.config, layer.input_shape
    if not isinstance(shape, tuple):
        raise refuse(layer, "an input of unknown rank")
    axes = normalized_axes(config, len(shape))

    def zeros(key: str) -> Expression:
        found = layer.weights.get(key)
        sizes = list(np.shape(config[key]) if found is None else found.shape)
        sizes = [1] * (len(axes) - len(sizes)) + sizes
        placed = [int(sizes[axes.index(i)]) if i in axes else 1 for i in range(len(shape))]
        return code("torch.zeros({})", tuple(placed))

    both, invert = (zeros("mean"), zeros("variance")), bool(config["invert"])
    keys = ("mean", "variance")
    return copied(layer, name, layer.class_name, *both, keys=keys, invert=invert)


def _rescaling(layer: LayerSpec, name: str) -> Emission:
    values = [layer.config["scale"], layer.config["offset"]]
    if any(np.ndim(value) for value in values):
        raise refuse(layer, "lists of numbers")
    scale, offset = (float(np.float32(value)) for value in values)
    return Emission(lambda site: code("{} * {} + {}", site.x, scale, offset))


def encoder(
    layer: LayerSpec, name: str, options: Sequence[Any], buffers: Sequence[str]
) -> Emission:
    """Write a layer of integers as a module with plain options and buffers of its own."""
    return replace(
        copied(layer, name, layer.class_name, *options, keys=buffers),
        call=lambda site: call(member(name), *site.args, **site.kwargs),
        options=frozenset({"count_weights"}),
    )


def _category_encoding(layer: LayerSpec, name: str) -> Emission:
    options = [layer.config["num_tokens"], layer.config["output_mode"]]
    return encoder(layer, name, options, ["tokens"])


def _discretization(layer: LayerSpec, name: str) -> Emission:
    boundaries = tuple(map(float, layer.config["bin_boundaries"]))
    options = [boundaries, layer.config["output_mode"]]
    return encoder(layer, name, options, ["boundaries", "tokens"])


def _integer_lookup(layer: LayerSpec, name: str) -> Emission:
    words, _ = lookup_tokens(layer.config)
    zeros = code("torch.zeros({}, dtype=torch.int64)", len(words))
    options = lookup_options(layer.config)
    buffers = ["keys", "places", *["tokens"] * (layer.config["output_mode"] != "int")]
    return copied(layer, name, layer.class_name, zeros, zeros, keys=buffers, **options)


EMITTERS: Mapping[str, Emit] = {
    "Normalization": _normalization,
    "Rescaling": _rescaling,
    "CategoryEncoding": _category_encoding,
    "Discretization": _discretization,
    "IntegerLookup": _integer_lookup,
}
