"""Layers that only move values. Masks end here, as they do in Keras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.layers.convolution import pad
from keras2torch_birnn.layers.interpolation import resize
from keras2torch_birnn.layers.registry import NONE, converts
from keras2torch_birnn.spec import LayerSpec


class Flatten(nn.Module):
    """(B, ...) -> (B, product). With ``channels_first`` the channels go last before."""

    def __init__(self, *, channels_first: bool) -> None:
        super().__init__()
        self.channels_first = channels_first

    def forward(self, x: Tensor) -> Tensor:
        """Row-major from the first axis after B."""
        if x.dim() == 1:
            return x[:, None]
        if self.channels_first and x.dim() > 2:
            x = x.movedim(1, -1)
        return x.flatten(1)


@converts("Flatten", mask=NONE)
def flatten(layer: LayerSpec) -> nn.Module:
    """Build a Flatten."""
    if layer.config["data_format"] == "channels_last":
        return nn.Flatten()
    return Flatten(channels_first=True)


class Reshape(nn.Module):
    """(B, ...) -> (B, *target_shape); one size may be -1."""

    def __init__(self, target_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.target_shape = target_shape

    def forward(self, x: Tensor) -> Tensor:
        """Row-major."""
        return x.reshape(x.shape[0], *self.target_shape)

    def extra_repr(self) -> str:
        """The shape."""
        return f"target_shape={self.target_shape}"


@converts("Reshape", mask=NONE)
def reshape(layer: LayerSpec) -> nn.Module:
    """Build a Reshape."""
    return Reshape(layer.config["target_shape"])


class Permute(nn.Module):
    """Reorders the axes after B; ``dims`` count from 1."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """Output axis i is input axis dims[i]."""
        return x.permute(0, *self.dims)

    def extra_repr(self) -> str:
        """The order."""
        return f"dims={self.dims}"


@converts("Permute", mask=NONE)
def permute(layer: LayerSpec) -> nn.Module:
    """Build a Permute."""
    return Permute(layer.config["dims"])


class RepeatVector(nn.Module):
    """(B, F) -> (B, n, F)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        """The same vector at every step."""
        return x[:, None, :].expand(-1, self.n, -1)

    def extra_repr(self) -> str:
        """How often."""
        return f"n={self.n}"


@converts("RepeatVector", mask=NONE)
def repeat_vector(layer: LayerSpec) -> nn.Module:
    """Build a RepeatVector."""
    return RepeatVector(layer.config["n"])


class Margins(nn.Module):
    """Zeros around the steps, or with negative numbers steps less: (before, after) per axis."""

    def __init__(self, around: tuple[tuple[int, int], ...], *, channels_last: bool) -> None:
        super().__init__()
        self.around, self.channels_last = around, channels_last

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, before + T + after, C), or with C before T; two axes likewise."""
        return pad(x, [*self.around, (0, 0)] if self.channels_last else self.around)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"around={self.around}"


@converts("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", mask=NONE)
def zero_padding(layer: LayerSpec) -> nn.Module:
    """Build a ZeroPadding."""
    config = layer.config
    return Margins(config["padding"], channels_last=config["data_format"] == "channels_last")


@converts("Cropping1D", "Cropping2D", "Cropping3D", mask=NONE)
def cropping(layer: LayerSpec) -> nn.Module:
    """Build a Cropping."""
    config = layer.config
    around = tuple((-before, -after) for before, after in config["cropping"])
    return Margins(around, channels_last=config["data_format"] == "channels_last")


class UpSampling(nn.Module):
    """Every step several times, or steps between neighbours; ``corners``: see ``resizing``."""

    def __init__(
        self, factors: tuple[int, ...], *, mode: str, corners: bool, channels_last: bool
    ) -> None:
        super().__init__()
        self.factors, self.mode, self.corners = factors, mode, corners
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T factor, C), or with C before T; two axes likewise."""
        first = 1 if self.channels_last else 2
        if self.mode == "nearest":
            for axis, factor in enumerate(self.factors, first):
                x = x.repeat_interleave(factor, dim=axis)
            return x
        if self.mode != "bilinear" or self.corners:
            for axis, factor in enumerate(self.factors, first):
                x = resize(x, axis, factor, self.mode, corners=self.corners)
            return x
        x = x.movedim(-1, 1) if self.channels_last else x
        sizes = [size * f for size, f in zip(x.shape[2:], self.factors, strict=True)]
        y = functional.interpolate(x, sizes, mode="bilinear", align_corners=False)
        return y.movedim(1, -1) if self.channels_last else y

    def extra_repr(self) -> str:
        """Factors and how."""
        shown = f"factors={self.factors}, mode={self.mode}"
        return f"{shown}, corners=True" if self.corners else shown


# (option, what is known of it) -> what is not
_UNKNOWN: Mapping[tuple[str, Any], str] = {
    ("bilinear", "corners or centers"): "TensorFlow 1.14 lays the corners of pixels on each other, "
    "2.0 their middles, and the file does not tell them apart",
    ("bicubic", "any backend"): "every backend of Keras 3 computes it in another way",
}


@converts("UpSampling1D", "UpSampling2D", "UpSampling3D", mask=NONE)
def up_sampling(layer: LayerSpec) -> nn.Module:
    """Build an UpSampling."""
    config = layer.config
    mode = config.get("interpolation", "nearest")
    reason = _UNKNOWN.get((mode, config.get(mode)))
    if reason is not None:
        raise UnsupportedOptionError(
            f"UpSampling2D option interpolation={mode!r} of this Keras is not supported: {reason}",
            place=layer.place,
        )
    return UpSampling(
        config["size"],
        mode=mode,
        corners=mode == "bilinear" and config["bilinear"] == "corners",
        channels_last=config["data_format"] == "channels_last",
    )
