"""Highway and MaxoutDense: layers of vectors that Keras 1 had, and Keras 2 kept as legacy.

F is the size of the input, which a Highway keeps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.activations import activation
from keras2torch_birnn.layers.registry import NONE, converts
from keras2torch_birnn.rnn.choice import activation_label
from keras2torch_birnn.rnn.parameters import parameter
from keras2torch_birnn.spec import Array, LayerSpec


def _linear(kernel: Array, bias: Array | None) -> nn.Linear:
    """``kernel`` (in, out) -> ``weight`` (out, in)."""
    in_features, out_features = kernel.shape
    module = nn.Linear(in_features, out_features, bias is not None, device="meta")
    module.weight = parameter(kernel.T)
    if bias is not None:
        module.bias = parameter(bias)
    return module


class Highway(nn.Module):
    """A gate decides how much of the activation goes on, and how much of the input itself."""

    def __init__(self, through: nn.Linear, carry: nn.Linear, value: Any) -> None:
        super().__init__()
        self.through, self.carry = through, carry
        self.activation = activation(value)
        self.shown = activation_label(value)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) -> (B, F)."""
        gate = torch.sigmoid(self.carry(x))
        y: Tensor = gate * self.activation(self.through(x)) + (1 - gate) * x
        return y

    def extra_repr(self) -> str:
        """The activation."""
        return f"activation={self.shown}"


@converts("Highway", mask=NONE)
def highway(layer: LayerSpec) -> nn.Module:
    """Build a Highway: ``W``, ``b`` -> ``through``, ``W_carry``, ``b_carry`` -> ``carry``."""
    weights = layer.weights
    return Highway(
        _linear(weights["W"], weights.get("b")),
        _linear(weights["W_carry"], weights.get("b_carry")),
        layer.config["activation"],
    )


class Maxout(nn.Module):
    """The largest of K linear maps of a vector, for every unit: ``weight`` (K units, F)."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, features: int) -> None:
        super().__init__()
        self.weight, self.bias, self.features = weight, bias, features

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) -> (B, units)."""
        products = functional.linear(x, self.weight, self.bias)
        return products.view(len(x), self.features, -1).amax(dim=1)

    def extra_repr(self) -> str:
        """Sizes."""
        rows, inner = self.weight.shape
        return f"{inner}, {rows // self.features}, features={self.features}"


@converts("MaxoutDense", mask=NONE)
def maxout(layer: LayerSpec) -> nn.Module:
    """Build a MaxoutDense: ``W`` (K, F, units) -> ``weight`` (K units, F), ``b`` -> ``bias``."""
    kernel = layer.weights["W"]
    features, inner, units = kernel.shape
    bias = layer.weights.get("b")
    return Maxout(
        parameter(kernel.transpose(0, 2, 1).reshape(features * units, inner)),
        None if bias is None else parameter(bias.reshape(-1)),
        features,
    )
