"""Dense over the last axis, EinsumDense over any axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.functional.parameters import to_parameter
from keras2torch_birnn.layers.activation import applied
from keras2torch_birnn.layers.registry import NONE, SAME, Around, Converter, Described
from keras2torch_birnn.schema.einsum import letters, summed_axes
from keras2torch_birnn.spec import Array, LayerSpec


def to_eight_bits(x: Tensor, axes: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Round to integers from -127 to 127 over ``axes``; return them, and what they are times."""
    scale = 127 / (x.abs().amax(dim=axes, keepdim=True) + 1e-7)
    return (x * scale).round().clamp(-127, 127), scale


def learning_from(smooth: Tensor, exact: Tensor, x: Tensor) -> Tensor:
    """Return ``exact``, with the gradient that ``smooth``, without rounding, has for ``x``."""
    learns = torch.is_grad_enabled() and x.requires_grad
    return smooth + (exact - smooth).detach() if learns else exact


class QuantizedDense(Described):
    """A Dense as Keras' int8 mode computes it.

    ``weight`` holds integers, ``scale`` (units,) their divisors; neither is trained. ``rounds``:
    the inputs are rounded to integers as well, row by row.
    """

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, scale: nn.Parameter, *, rounds: bool
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.scale, self.rounds = weight, bias, scale, rounds
        for fixed in (weight, scale):
            fixed.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """Compute (B, ..., in) -> (B, ..., out). Gradients ignore the rounding."""
        y = functional.linear(input, self.weight) / self.scale
        if self.rounds:
            rounded, scale = to_eight_bits(input, -1)
            exact = functional.linear(rounded, self.weight) / (self.scale * scale)
            y = learning_from(y, exact, input)
        return y if self.bias is None else y + self.bias


def _quantized(layer: LayerSpec) -> nn.Module:
    """Turn ``kernel`` (in, units) of int8 -> ``weight``, ``kernel_scale`` -> ``scale``."""
    weights = layer.weights
    return QuantizedDense(
        to_parameter(weights["kernel"].T),
        to_parameter(weights["bias"]) if layer.config["use_bias"] else None,
        to_parameter(weights["kernel_scale"].reshape(-1)),  # (..., units)
        rounds=layer.semantics["quantized"] == "inputs and weights",
    )


def dense(layer: LayerSpec) -> nn.Module:
    """Build a Dense, an nn.Linear; its activation comes after it."""
    if layer.semantics.get("quantized"):
        return _quantized(layer)
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


class QuantizedEinsumDense(EinsumDense):
    """An EinsumDense as Keras' int8 mode computes it.

    ``weight`` holds integers, ``scale`` their divisors, by the axes of the output; neither is
    trained. ``rounds``: the inputs are rounded to integers as well, over the axes that are summed.
    """

    def __init__(
        self,
        equation: str,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        scale: nn.Parameter,
        *,
        rounds: bool,
    ) -> None:
        super().__init__(equation, weight, bias)
        self.scale, self.rounds = scale, rounds
        for fixed in (weight, scale):
            fixed.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the einsum; axes are those of the equation. Gradients ignore the rounding."""
        y = torch.einsum(self.equation, x, self.weight) / self.scale
        if self.rounds:
            rounded, scale = to_eight_bits(x, summed_axes(self.equation))
            exact = torch.einsum(self.equation, rounded / scale, self.weight) / self.scale
            y = learning_from(y, exact, x)
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
    if not layer.semantics.get("quantized"):
        return EinsumDense(config["equation"], weight, bias)
    scale = to_parameter(layer.weights["kernel_scale"])
    rounds = layer.semantics["quantized"] == "inputs and weights"
    return QuantizedEinsumDense(config["equation"], weight, bias, scale, rounds=rounds)


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
