"""Pooling over time, in windows and at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.layers.convolution import same_padding
from keras2torch_birnn.layers.registry import NONE, USES, MaskFlow, converts
from keras2torch_birnn.spec import LayerSpec


class Pooling1D(nn.Module):
    """Maximum or mean of windows over time; padded steps take no part in either."""

    def __init__(self, *, kind: str, size: int, stride: int, padding: str, last: bool) -> None:
        super().__init__()
        self.kind, self.size, self.stride = kind, size, stride
        self.padding, self.channels_last = padding, last

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T', C), or with C before T if channels_first."""
        x = x.transpose(1, 2) if self.channels_last else x
        around = (0, 0)
        if self.padding == "same":
            around = same_padding(x.shape[2], self.size, self.stride)
        if self.kind == "max":
            padded = functional.pad(x, around, value=-torch.inf)
            y = functional.max_pool1d(padded, self.size, self.stride)
        else:
            y = functional.avg_pool1d(functional.pad(x, around), self.size, self.stride)
            if any(around):
                ones = functional.pad(x.new_ones(1, 1, x.shape[2]), around)
                y = y / functional.avg_pool1d(ones, self.size, self.stride)
        return y.transpose(1, 2) if self.channels_last else y

    def extra_repr(self) -> str:
        """Kind and window."""
        return f"{self.kind}, size={self.size}, stride={self.stride}, padding={self.padding}"


def _windows(layer: LayerSpec, kind: str) -> nn.Module:
    config = layer.config
    return Pooling1D(
        kind=kind,
        size=config["pool_size"],
        stride=config["strides"] or config["pool_size"],
        padding=config["padding"],
        last=config["data_format"] == "channels_last",
    )


@converts("MaxPooling1D", mask=NONE)
def max_pooling(layer: LayerSpec) -> nn.Module:
    """Build a MaxPooling1D."""
    return _windows(layer, "max")


@converts("AveragePooling1D", mask=NONE)
def average_pooling(layer: LayerSpec) -> nn.Module:
    """Build an AveragePooling1D."""
    return _windows(layer, "average")


class GlobalPooling1D(nn.Module):
    """Maximum or mean over all steps; the mean counts valid steps only, if there is a mask."""

    def __init__(self, *, kind: str, keepdims: bool, last: bool) -> None:
        super().__init__()
        self.kind, self.keepdims, self.time = kind, keepdims, 1 if last else 2

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, C). A row with nothing valid gives 0 / 0 = NaN, as in Keras."""
        if self.kind == "max":
            return x.amax(dim=self.time, keepdim=self.keepdims)
        if mask is None:
            return x.mean(dim=self.time, keepdim=self.keepdims)
        weight = mask.to(x.dtype).unsqueeze(3 - self.time)
        total = (x * weight).sum(dim=self.time, keepdim=self.keepdims)
        return total / weight.sum(dim=self.time, keepdim=self.keepdims)

    def extra_repr(self) -> str:
        """The kind."""
        return self.kind


def _global(layer: LayerSpec, kind: str) -> nn.Module:
    return GlobalPooling1D(
        kind=kind,
        keepdims=layer.config["keepdims"],
        last=layer.config["data_format"] == "channels_last",
    )


@converts("GlobalMaxPooling1D", mask=NONE)
def global_max_pooling(layer: LayerSpec) -> nn.Module:
    """Build a GlobalMaxPooling1D. Keras ignores a mask here."""
    return _global(layer, "max")


def _uses_mask(layer: LayerSpec) -> MaskFlow:
    return USES if layer.config["use_mask"] else NONE


@converts("GlobalAveragePooling1D", mask=_uses_mask)
def global_average_pooling(layer: LayerSpec) -> nn.Module:
    """Build a GlobalAveragePooling1D."""
    return _global(layer, "average")
