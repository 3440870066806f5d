"""Source text of locally connected layers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from keras2torch_birnn.exporting.source.activation import applied, helpers_of
from keras2torch_birnn.exporting.source.code import Expression, call, code, member, symbol
from keras2torch_birnn.exporting.source.convolution import channels_ahead
from keras2torch_birnn.exporting.source.dense import kernel_keys
from keras2torch_birnn.exporting.source.emission import Emission, Emit, Site, class_of, same_names
from keras2torch_birnn.schema.local import places, windows_of
from keras2torch_birnn.spec import LayerSpec


def _locally_connected(layer: LayerSpec, name: str) -> Emission:
    config, shape = layer.config, layer.input_shape
    axes, last = places(config, shape), config["data_format"] == "channels_last"
    inner = int(shape[-1] if last else shape[1]) * math.prod(axis.size for axis in axes)
    bias = config["use_bias"] and tuple(map(int, layer.weights["bias"].shape))
    weights = [(math.prod(axis.count for axis in axes), inner, config["filters"]), bias]
    zeros = [code("nn.Parameter(torch.zeros({}))", size) if size else None for size in weights]
    products = call(symbol("LocalProducts"), *zeros, *windows_of(axes))
    value = config["activation"]

    def multiply(site: Site) -> Expression:
        x = channels_ahead(site.x, len(axes)) if last else site.x
        y = applied(value, call(member(name), x))
        return y if last else code("{}.movedim(-1, 1)", y)

    keys = kernel_keys(bias=bool(bias))
    helpers = (class_of(layer, "LocalProducts"), *helpers_of(value))
    return Emission(multiply, {name: products}, same_names(name, keys), helpers)


EMITTERS: Mapping[str, Emit] = dict.fromkeys(
    ("LocallyConnected1D", "LocallyConnected2D"), _locally_connected
)
