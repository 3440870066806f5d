"""Dense: contracts the last axis, whatever the rank. EinsumDense: any axes, by an equation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.activations import activation
from keras2torch_birnn.layers.registry import NONE, converts
from keras2torch_birnn.rnn.choice import activation_label
from keras2torch_birnn.rnn.parameters import parameter
from keras2torch_birnn.schema.einsum import letters
from keras2torch_birnn.spec import LayerSpec


class Dense(nn.Linear):
    """An ``nn.Linear`` followed by an activation."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, value: Any) -> None:
        super().__init__(in_features, out_features, bias, device="meta")
        self.activation = activation(value)
        self.shown = activation_label(value)

    def forward(self, input: Tensor) -> Tensor:
        """(B, ..., in) -> (B, ..., out)."""
        return self.activation(super().forward(input))

    def extra_repr(self) -> str:
        """Torch's own, then the activation."""
        return f"{super().extra_repr()}, activation={self.shown}"


class QuantizedDense(Dense):
    """A Dense as Keras' int8 mode computes it.

    ``weight`` holds whole numbers, ``scale`` (units,) what they are divided by; neither learns.
    ``rounds``: the inputs become whole numbers as well, row by row.
    """

    scale: nn.Parameter
    rounds: bool

    def forward(self, input: Tensor) -> Tensor:
        """(B, ..., in) -> (B, ..., out). Gradients pass the rounding by."""
        y = functional.linear(input, self.weight) / self.scale
        if self.rounds:
            scale = 127 / (input.abs().amax(dim=-1, keepdim=True) + 1e-7)
            rounded = (input * scale).round().clamp(-127, 127)
            exact = functional.linear(rounded, self.weight) / (self.scale * scale)
            learns = torch.is_grad_enabled() and input.requires_grad
            y = y + (exact - y).detach() if learns else exact
        return self.activation(y if self.bias is None else y + self.bias)

    def extra_repr(self) -> str:
        """The same, and whether inputs are rounded."""
        return f"{super().extra_repr()}, rounds={self.rounds}"


def _quantized(layer: LayerSpec) -> nn.Module:
    """``kernel`` (in, units) of int8 -> ``weight``, ``kernel_scale`` -> ``scale``."""
    kernel = layer.weights["kernel"]
    module = QuantizedDense(
        *kernel.shape, bias=layer.config["use_bias"], value=layer.config["activation"]
    )
    module.rounds = layer.config["quantized"] == "inputs and weights"
    module.weight, module.scale = parameter(kernel.T), parameter(layer.weights["kernel_scale"])
    for fixed in (module.weight, module.scale):
        fixed.requires_grad_(False)
    if layer.config["use_bias"]:
        module.bias = parameter(layer.weights["bias"])
    return module


@converts("Dense")
def dense(layer: LayerSpec) -> nn.Module:
    """Build a Dense: an nn.Linear, with ``kernel`` (in, units) transposed to ``weight``."""
    if layer.config.get("quantized"):
        return _quantized(layer)
    kernel, value = layer.weights["kernel"], layer.config["activation"]
    bias, (in_features, out_features) = layer.config["use_bias"], kernel.shape
    module: nn.Linear
    if value == "linear":
        module = nn.Linear(in_features, out_features, bias, device="meta")
    else:
        module = Dense(in_features, out_features, bias=bias, value=value)
    module.weight = parameter(kernel.T)
    if bias:
        module.bias = parameter(layer.weights["bias"])
    return module


class EinsumDense(nn.Module):
    """A product by an equation of letters, a bias that is broadcast, an activation."""

    def __init__(
        self, equation: str, weight: nn.Parameter, bias: nn.Parameter | None, value: Any
    ) -> None:
        super().__init__()
        self.equation, self.weight, self.bias = equation, weight, bias
        self.activation = activation(value)
        self.shown = activation_label(value)

    def forward(self, x: Tensor) -> Tensor:
        """Axes as the equation names them."""
        y = torch.einsum(self.equation, x, self.weight)
        return self.activation(y if self.bias is None else y + self.bias)

    def extra_repr(self) -> str:
        """Equation, shape of the kernel, bias, activation."""
        bias = None if self.bias is None else tuple(self.bias.shape)
        shown = f"'{self.equation}', {tuple(self.weight.shape)}, bias={bias}"
        return f"{shown}, activation={self.shown}"


@converts("EinsumDense", mask=NONE)
def einsum_dense(layer: LayerSpec) -> nn.Module:
    """Build an EinsumDense; it is a Dense where its equation is that of one."""
    config, parts = layer.config, letters(layer.config["equation"])
    last_alone = (parts.input[-1] + parts.output[-1], parts.input[:-1])
    plain = last_alone == (parts.kernel, parts.output[:-1]) and parts.dots != "right"
    biased = config["bias_axes"] is not None
    if plain and config["bias_axes"] in (None, parts.output[-1]):
        return dense(replace(layer, config={**config, "use_bias": biased}))
    bias = parameter(layer.weights["bias"]) if biased else None
    weight = parameter(layer.weights["kernel"])
    return EinsumDense(config["equation"], weight, bias, config["activation"])
