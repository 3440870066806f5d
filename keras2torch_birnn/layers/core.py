"""Casts of inputs, Dense layers, Embedding, Masking, activations, layers that act in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.layers.registry import (
    NONE,
    SAME,
    USES,
    Around,
    Build,
    Converter,
    Described,
    MaskFlow,
    Step,
    by_axes,
    leave_alone,
    of_options,
    passes_mask,
)
from keras2torch_birnn.rnn.activations import FUNCTIONS, activation
from keras2torch_birnn.rnn.checks import check_tensor
from keras2torch_birnn.rnn.parameters import to_parameter
from keras2torch_birnn.schema.core import activation_label
from keras2torch_birnn.schema.einsum import letters
from keras2torch_birnn.spec import Array, LayerSpec

# ---- inputs --------------------------------------------------------------------------------------
# Casts to the declared dtype, as Keras does them. A converted model computes in one precision, that
# of ``like``, also after ``model.to()``.


def to_float(x: Tensor, like: Tensor) -> Tensor:
    """Cast floats of any precision, integers and bools to the model's floats."""
    check_tensor("input", x, like.dtype)
    return x.to(like.dtype)


def to_integer(x: Tensor) -> Tensor:
    """Cast to integers, as Keras does: floats lose their fraction."""
    check_tensor("input", x, torch.int64)
    return x.long() if x.is_floating_point() or x.dtype.itemsize == 1 else x


def to_ids(x: Tensor) -> Tensor:
    """Cast to int64, which torch requires of ids."""
    check_tensor("input", x, torch.int64)
    return x.long()


def to_bool(x: Tensor) -> Tensor:
    """Cast to bool: all but zero is True."""
    check_tensor("input", x, torch.bool)
    return x.bool()


INPUT_CASTS: Mapping[str, Callable[..., Tensor]] = {
    "float": to_float,
    "int32": to_integer,
    "int64": to_integer,
    "bool": to_bool,
    "ids": to_ids,
}


# ---- activations ---------------------------------------------------------------------------------


class Activation(nn.Module):
    """An activation of Keras as a module."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.function = activation(value)
        self.shown = activation_label(value)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.function(x)

    def extra_repr(self) -> str:
        """Show its name and options."""
        return self.shown


def applied(value: Any) -> Step | None:
    """Return an activation as a step after a layer's module, none if it is linear."""
    if value == "linear":
        return None
    options = {"name": value} if isinstance(value, str) else dict(value)
    return Step(FUNCTIONS[options.pop("name")], options=options)


def activation_layer(layer: LayerSpec) -> nn.Module:
    """Build an Activation."""
    value = layer.config["activation"]
    return nn.Identity() if value == "linear" else Activation(value)


def relu(layer: LayerSpec) -> nn.Module:
    """Build a ReLU, an nn.ReLU where it has no options."""
    options = {k: layer.config[k] for k in ("negative_slope", "max_value", "threshold")}
    if options == {"negative_slope": 0.0, "max_value": None, "threshold": 0.0}:
        return nn.ReLU()
    return Activation({"name": "relu", **options})


class ThresholdedReLU(Described):
    """Let x pass where x > theta, else zero (Keras 2.2.4 ``layers/advanced_activations.py``)."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = theta

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return x * (x > self.theta)


class PReLU(Described):
    """relu(x) - weight * relu(-x); weight has the input's shape without B, 1 on shared axes."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return torch.relu(x) - self.weight * torch.relu(-x)


class Softmax(Described):
    """Softmax over one axis or several, together.

    A mask takes -1e9 off the masked entries (tf.keras), or puts -1e9 in their place and zeroes the
    result (Keras 3, ``replaces``).
    """

    def __init__(self, axes: tuple[int, ...], *, replaces: bool) -> None:
        super().__init__()
        self.axes, self.replaces = axes, replaces

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute it of x, with a mask of its shape."""
        if mask is None:
            return self._softmax(x)
        if self.replaces:
            return self._softmax(torch.where(mask, x, -1e9)) * mask
        return self._softmax(x + torch.where(mask, 0.0, -1e9).to(x.dtype))

    def _softmax(self, x: Tensor) -> Tensor:
        if len(self.axes) == 1:
            return torch.softmax(x, dim=self.axes[0])
        return torch.exp(x - torch.logsumexp(x, dim=self.axes, keepdim=True))


def _softmax_mask(layer: LayerSpec) -> MaskFlow:
    """Return its mask flow: a mask must broadcast with the input, one of steps with (B, T)."""
    if layer.semantics["masking"] == "ignore":
        return SAME
    refused = None
    if layer.input_shape is not None and len(layer.input_shape) != 2:
        refused = "a mask into a Softmax of more than two dimensions does not fit in Keras either"
    return MaskFlow(takes=True, refused=refused)


def softmax(layer: LayerSpec) -> nn.Module:
    """Build a Softmax."""
    return Softmax(layer.config["axis"], replaces=layer.semantics["masking"] == "replace")


# ---- Dense and EinsumDense -----------------------------------------------------------------------


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


# ---- Embedding -----------------------------------------------------------------------------------


def not_zero(x: Tensor, mask: Tensor | None) -> Tensor:
    """Make the mask of Embedding(mask_zero=True): id 0 is padding."""
    return x.ne(0)


def _embedding_mask(layer: LayerSpec) -> MaskFlow:
    return MaskFlow(after=not_zero, makes=True) if layer.config["mask_zero"] else NONE


def embedding(layer: LayerSpec) -> nn.Module:
    """Build an Embedding, an nn.Embedding; row 0 is an ordinary row. Ids may come as floats."""
    table = to_parameter(layer.weights["embeddings"])
    rows, columns = table.shape
    module = nn.Embedding(rows, columns, _weight=table)  # given, so that none is drawn at random
    module.weight = table
    return module


# ---- Masking -------------------------------------------------------------------------------------


def differs(x: Tensor, mask: Tensor | None, value: float) -> Tensor:
    """Make Masking's mask: a step is valid if any feature differs from ``value``."""
    return x.ne(value).any(dim=-1)


class Masking(Described):
    """Zeros at steps where every feature is ``mask_value``; the mask marks the others."""

    def __init__(self, mask_value: float) -> None:
        super().__init__()
        self.mask_value = mask_value

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Set masked steps of (B, ..., F) to zero; ``mask``: its own, where that is known."""
        if mask is None:
            mask = differs(x, None, self.mask_value)
        return x * mask[..., None].to(x.dtype)


def call_with_mask(module: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Call a Masking with the mask that ``differs`` made of x, or what a user put in its place."""
    found: Tensor = module(x, mask=mask) if type(module) is Masking else module(x)
    return found


def _single(layer: LayerSpec) -> float:
    """Return the value as Keras compares it: in float32, whatever the model computes in."""
    return float(np.float32(layer.config["mask_value"]))


def _masking_mask(layer: LayerSpec) -> MaskFlow:
    return MaskFlow(after=differs, makes=True, constants={"value": _single(layer)})


def masking(layer: LayerSpec) -> nn.Module:
    """Build a Masking."""
    return Masking(_single(layer))


# ---- layers that loop over time -----------------------------------------------------------------

_NO_MASK = "a mask into {} is not supported: this Keras fails on it as well"


def loop_mask(layer: LayerSpec) -> MaskFlow:
    """Return the mask flow of a recurrent layer or a Bidirectional."""
    one = layer.parts.get("forward_layer", layer)
    halves = layer.parts.values() if layer.class_name == "Bidirectional" else (layer,)
    if any(half.semantics["masked_output"] == "fails" for half in halves):
        what = "cells of different width" if one.class_name == "RNN" else one.class_name
        return MaskFlow(refused=_NO_MASK.format(what))
    # The output has steps, and so a mask, only with return_sequences.
    return MaskFlow(takes=True) if one.config["return_sequences"] else USES


# ---- layers that act in training only ------------------------------------------------------------


def drawn(x: Tensor, noise_shape: tuple[int | None, ...]) -> list[int]:
    """Return the shape of the noise for x; None is x's own size."""
    sizes = zip(x.shape, noise_shape, strict=True)
    return [own if size is None else size for own, size in sizes]


class ShapedDropout(Described):
    """Dropout whose mask has size 1 on some axes (``noise_shape``; SpatialDropout: the steps)."""

    def __init__(self, rate: float, noise_shape: tuple[int | None, ...]) -> None:
        super().__init__()
        self.rate, self.noise_shape = rate, noise_shape

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by a dropout mask of the noise's shape."""
        if not self.training:
            return x
        return x * functional.dropout(x.new_ones(drawn(x, self.noise_shape)), self.rate)


def spatial_dropout(layer: LayerSpec) -> nn.Module:
    """Build a SpatialDropout: whole channels of (B, T, C) are dropped; with more axes likewise."""
    ones = (1,) * int(layer.class_name[-2])
    last = layer.config.get("data_format", "channels_last") == "channels_last"
    return ShapedDropout(layer.config["rate"], (None, *ones, None) if last else (None, None, *ones))


class GaussianNoise(Described):
    """Addition of normal noise in training."""

    def __init__(self, stddev: float) -> None:
        super().__init__()
        self.stddev = stddev

    def forward(self, x: Tensor) -> Tensor:
        """Compute x + stddev * N(0, 1)."""
        return x + self.stddev * torch.randn_like(x) if self.training else x


class GaussianDropout(Described):
    """Multiplication by normal noise around 1 in training, of variance rate / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Compute x * N(1, rate / (1 - rate))."""
        if not self.training or not 0.0 < self.rate < 1.0:
            return x
        deviation = math.sqrt(self.rate / (1.0 - self.rate))
        return x * (1.0 + deviation * torch.randn_like(x))


class ShapedAlphaDropout(Described):
    """AlphaDropout whose mask has size 1 on some axes (``noise_shape``)."""

    # What selu gives for a very low value.
    LOWEST = -1.6732632423543772 * 1.0507009873554805

    def __init__(self, rate: float, noise_shape: tuple[int | None, ...]) -> None:
        super().__init__()
        self.rate, self.noise_shape = rate, noise_shape

    def forward(self, x: Tensor) -> Tensor:
        """Set dropped values to the lowest, then restore mean 0 and variance 1."""
        if not self.training or not 0.0 < self.rate < 1.0:
            return x
        kept = torch.rand(drawn(x, self.noise_shape), dtype=x.dtype, device=x.device) >= self.rate
        a = 1 / math.sqrt((1 - self.rate) * (1 + self.rate * self.LOWEST**2))
        return torch.where(kept, x, self.LOWEST) * a - a * self.LOWEST * self.rate


def _dropout(plain: type[nn.Module], shaped: type[nn.Module]) -> Build:
    """Return the builder of a dropout: torch's own, or one whose mask has a shape of its own."""

    def build(layer: LayerSpec) -> nn.Module:
        rate, shape = layer.config["rate"], layer.config["noise_shape"]
        return plain(rate) if shape is None else shaped(rate, shape)

    return build


CONVERTERS: Mapping[str, Converter] = {
    "Activation": Converter(activation_layer, SAME),
    "ReLU": Converter(relu, passes_mask),
    "LeakyReLU": Converter(of_options(nn.LeakyReLU, "negative_slope"), SAME),
    "ELU": Converter(of_options(nn.ELU, "alpha"), SAME),
    "ThresholdedReLU": Converter(of_options(ThresholdedReLU, "theta"), SAME),
    "PReLU": Converter(of_options(PReLU, "alpha"), SAME),
    "Softmax": Converter(softmax, _softmax_mask),
    "Dense": Converter(dense, SAME, _activated),
    "EinsumDense": Converter(einsum_dense, NONE, _activated),
    "Embedding": Converter(embedding, _embedding_mask, lambda _: Around(before=Step(to_ids))),
    "Masking": Converter(masking, _masking_mask),
    "Dropout": Converter(_dropout(nn.Dropout, ShapedDropout), SAME),
    **by_axes("SpatialDropout{}D", Converter(spatial_dropout, SAME)),
    "GaussianNoise": Converter(of_options(GaussianNoise, "stddev"), SAME),
    "GaussianDropout": Converter(of_options(GaussianDropout, "rate"), SAME),
    "AlphaDropout": Converter(_dropout(nn.AlphaDropout, ShapedAlphaDropout), SAME),
    "ActivityRegularization": Converter(leave_alone, SAME),  # it adds to Keras' loss
    "Identity": Converter(leave_alone, passes_mask),  # tf.keras' drops the mask
}
