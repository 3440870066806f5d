"""Dense over the last axis, EinsumDense over any axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from keras2torch_birnn.layers.activation import applied
from keras2torch_birnn.layers.registry import NONE, SAME, Around, Converter, Described
from keras2torch_birnn.rnn.parameters import to_parameter
from keras2torch_birnn.schema.einsum import letters
from keras2torch_birnn.spec import Array, LayerSpec


def dense(layer: LayerSpec) -> nn.Module:
    """Build a Dense, an nn.Linear; its activation comes after it."""
    bias = layer.weights["bias"] if layer.config["use_bias"] else None
    return linear(layer.weights["kernel"], bias)


def _activated(layer: LayerSpec) -> Around:
    return Around(after=applied(layer.config["activation"]))


class EinsumDense(Described):
    """An einsum of the input and a kernel, and a broadcast bias."""

    def __init__(self, equation: str, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.equation, self.weight, self.bias = equation, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """Compute the einsum; axes are those of the equation."""
        y = torch.einsum(self.equation, x, self.weight)
        return y if self.bias is None else y + self.bias


def einsum_dense(layer: LayerSpec) -> nn.Module:
    """Build an EinsumDense; it is a Dense where its equation is that of one."""
    config, parts = layer.config, letters(layer.config["equation"])
    last_alone = (parts.input[-1] + parts.output[-1], parts.input[:-1])
    plain = last_alone == (parts.kernel, parts.output[:-1]) and parts.dots != "right"
    biased = config["bias_axes"] is not None
    if plain and config["bias_axes"] in (None, parts.output[-1]):
        return dense(replace(layer, config={**config, "use_bias": biased}))
    bias = to_parameter(layer.weights["bias"]) if biased else None
    weight = to_parameter(layer.weights["kernel"])
    return EinsumDense(config["equation"], weight, bias)


def linear(kernel: Array, bias: Array | None) -> nn.Linear:
    """Turn ``kernel`` (in, out) -> ``weight`` (out, in)."""
    in_features, out_features = kernel.shape
    module = nn.Linear(in_features, out_features, bias is not None, device="meta")
    module.weight = to_parameter(kernel.T)
    if bias is not None:
        module.bias = to_parameter(bias)
    return module


CONVERTERS: Mapping[str, Converter] = {
    "Dense": Converter(dense, SAME, _activated),
    "EinsumDense": Converter(einsum_dense, NONE, _activated),
}
