"""Layers that act in training only. At inference all are the identity."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.layers.registry import (
    SAME,
    Build,
    Converter,
    Described,
    by_axes,
    leave_alone,
    of_options,
    passes_mask,
)
from keras2torch_birnn.spec import LayerSpec


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
    "Dropout": Converter(_dropout(nn.Dropout, ShapedDropout), SAME),
    **by_axes("SpatialDropout{}D", Converter(spatial_dropout, SAME)),
    "GaussianNoise": Converter(of_options(GaussianNoise, "stddev"), SAME),
    "GaussianDropout": Converter(of_options(GaussianDropout, "rate"), SAME),
    "AlphaDropout": Converter(_dropout(nn.AlphaDropout, ShapedAlphaDropout), SAME),
    "ActivityRegularization": Converter(leave_alone, SAME),  # it adds to Keras' loss
    "Identity": Converter(leave_alone, passes_mask),  # tf.keras' drops the mask
}
