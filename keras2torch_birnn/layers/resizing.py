"""Layers that pad, crop or repeat steps. Masks end here, as they do in Keras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.layers.convolution import pad
from keras2torch_birnn.layers.interpolation import resize
from keras2torch_birnn.layers.registry import NONE, Converter
from keras2torch_birnn.spec import LayerSpec


class Margins(nn.Module):
    """Padding with zeros, or cropping with negative numbers: (before, after) per axis."""

    def __init__(self, around: tuple[tuple[int, int], ...], *, channels_last: bool) -> None:
        super().__init__()
        self.around, self.channels_last = around, channels_last

    def forward(self, x: Tensor) -> Tensor:
        """Pad (B, T, C) -> (B, before + T + after, C), or with C before T; two axes likewise."""
        return pad(x, [*self.around, (0, 0)] if self.channels_last else self.around)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"around={self.around}"


def zero_padding(layer: LayerSpec) -> nn.Module:
    """Build a ZeroPadding."""
    config = layer.config
    return Margins(config["padding"], channels_last=config["data_format"] == "channels_last")


def cropping(layer: LayerSpec) -> nn.Module:
    """Build a Cropping."""
    config = layer.config
    around = tuple((-before, -after) for before, after in config["cropping"])
    return Margins(around, channels_last=config["data_format"] == "channels_last")


class UpSampling(nn.Module):
    """Repetition of steps, or interpolation between them; ``corners``: see ``interpolation``."""

    def __init__(
        self, factors: tuple[int, ...], *, mode: str, corners: bool, channels_last: bool
    ) -> None:
        super().__init__()
        self.factors, self.mode, self.corners = factors, mode, corners
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        """Resize (B, T, C) -> (B, T factor, C), or with C before T; two axes likewise."""
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
        """Show factors and interpolation."""
        shown = f"factors={self.factors}, mode={self.mode}"
        return f"{shown}, corners=True" if self.corners else shown


# (option, what is known of it) -> what is not
_UNKNOWN: Mapping[tuple[str, Any], str] = {
    ("bilinear", "corners or centers"): "TensorFlow 1.14 lays the corners of pixels on each other, "
    "2.0 their middles, and the file does not tell them apart",
    ("bicubic", "any backend"): "every backend of Keras 3 computes it in another way",
}


def up_sampling(layer: LayerSpec) -> nn.Module:
    """Build an UpSampling."""
    config = layer.config
    mode = config.get("interpolation", "nearest")
    reason = _UNKNOWN.get((mode, layer.semantics.get(mode)))
    if reason is not None:
        raise UnsupportedOptionError(
            f"UpSampling2D option interpolation={mode!r} of this Keras is not supported: {reason}",
            "save it with interpolation='nearest' or, with TensorFlow 2.1 and later, 'bilinear'",
            place=layer.place,
        )
    return UpSampling(
        config["size"],
        mode=mode,
        corners=mode == "bilinear" and layer.semantics["bilinear"] == "corners",
        channels_last=config["data_format"] == "channels_last",
    )


CONVERTERS: Mapping[str, Converter] = {
    "ZeroPadding1D": Converter(zero_padding, NONE),
    "ZeroPadding2D": Converter(zero_padding, NONE),
    "ZeroPadding3D": Converter(zero_padding, NONE),
    "Cropping1D": Converter(cropping, NONE),
    "Cropping2D": Converter(cropping, NONE),
    "Cropping3D": Converter(cropping, NONE),
    "UpSampling1D": Converter(up_sampling, NONE),
    "UpSampling2D": Converter(up_sampling, NONE),
    "UpSampling3D": Converter(up_sampling, NONE),
}
