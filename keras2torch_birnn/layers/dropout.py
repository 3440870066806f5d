"""Layers that act in training only. At inference all are the identity."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.layers.registry import NONE, SAME, MaskFlow, converts
from keras2torch_birnn.spec import LayerSpec


class ShapedDropout(nn.Module):
    """Dropout whose mask has size 1 on some axes (``noise_shape``; SpatialDropout: the steps)."""

    def __init__(self, rate: float, noise_shape: tuple[int | None, ...]) -> None:
        super().__init__()
        self.rate, self.noise_shape = rate, noise_shape

    def forward(self, x: Tensor) -> Tensor:
        """None in the shape stands for the input's own size."""
        if not self.training:
            return x
        shape = [
            own if size is None else size
            for own, size in zip(x.shape, self.noise_shape, strict=True)
        ]
        return x * functional.dropout(x.new_ones(shape), self.rate)

    def extra_repr(self) -> str:
        """Rate and shape."""
        return f"rate={self.rate}, noise_shape={self.noise_shape}"


@converts("Dropout")
def dropout(layer: LayerSpec) -> nn.Module:
    """Build a Dropout."""
    shape = layer.config["noise_shape"]
    if shape is None:
        return nn.Dropout(layer.config["rate"])
    return ShapedDropout(layer.config["rate"], tuple(shape))


@converts("SpatialDropout1D")
def spatial_dropout(layer: LayerSpec) -> nn.Module:
    """Build a SpatialDropout1D: whole channels of (B, T, C) are dropped."""
    return ShapedDropout(layer.config["rate"], (None, 1, None))


@converts("SpatialDropout2D")
def spatial_dropout_2d(layer: LayerSpec) -> nn.Module:
    """Build a SpatialDropout2D: whole channels of (B, H, W, C) or (B, C, H, W) are dropped."""
    last = layer.config["data_format"] == "channels_last"
    return ShapedDropout(layer.config["rate"], (None, 1, 1, None) if last else (None, None, 1, 1))


class GaussianNoise(nn.Module):
    """Adds normal noise in training."""

    def __init__(self, stddev: float) -> None:
        super().__init__()
        self.stddev = stddev

    def forward(self, x: Tensor) -> Tensor:
        """x + stddev * N(0, 1)."""
        return x + self.stddev * torch.randn_like(x) if self.training else x

    def extra_repr(self) -> str:
        """The deviation."""
        return f"stddev={self.stddev}"


@converts("GaussianNoise")
def gaussian_noise(layer: LayerSpec) -> nn.Module:
    """Build a GaussianNoise."""
    return GaussianNoise(layer.config["stddev"])


class GaussianDropout(nn.Module):
    """Multiplies by normal noise around 1 in training, of variance rate / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x * N(1, rate / (1 - rate))."""
        if not self.training or not 0.0 < self.rate < 1.0:
            return x
        deviation = math.sqrt(self.rate / (1.0 - self.rate))
        return x * (1.0 + deviation * torch.randn_like(x))

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"


@converts("GaussianDropout")
def gaussian_dropout(layer: LayerSpec) -> nn.Module:
    """Build a GaussianDropout."""
    return GaussianDropout(layer.config["rate"])


@converts("AlphaDropout")
def alpha_dropout(layer: LayerSpec) -> nn.Module:
    """Build an AlphaDropout."""
    return nn.AlphaDropout(layer.config["rate"])


@converts("ActivityRegularization")
def activity_regularization(layer: LayerSpec) -> nn.Module:
    """Build an ActivityRegularization: it adds to Keras' loss and leaves its input alone."""
    return nn.Identity()


def _identity_mask(layer: LayerSpec) -> MaskFlow:
    return SAME if layer.config["passes_mask"] else NONE


@converts("Identity", mask=_identity_mask)
def identity(layer: LayerSpec) -> nn.Module:
    """Build an Identity. tf.keras' drops the mask."""
    return nn.Identity()
