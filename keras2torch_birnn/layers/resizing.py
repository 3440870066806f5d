"""Layers that pad, crop, repeat or resize steps. Masks end here, as they do in Keras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.layers.convolution import pad
from keras2torch_birnn.layers.registry import NONE, Converter, Described, by_axes, of_options
from keras2torch_birnn.spec import LayerSpec


class Margins(Described):
    """Padding with zeros, or cropping with negative numbers: (before, after) per axis."""

    def __init__(self, around: tuple[tuple[int, int], ...], *, channels_last: bool) -> None:
        super().__init__()
        self.around, self.channels_last = around, channels_last

    def forward(self, x: Tensor) -> Tensor:
        """Pad (B, T, C) -> (B, before + T + after, C), or with C before T; two axes likewise."""
        return pad(x, [*self.around, (0, 0)] if self.channels_last else self.around)


def cropping(layer: LayerSpec) -> nn.Module:
    """Build a Cropping."""
    config = layer.config
    around = tuple((-before, -after) for before, after in config["cropping"])
    return Margins(around, channels_last=config["data_format"] == "channels_last")


def _resize_bilinearly(x: Tensor, sizes: Sequence[int], *, channels_last: bool) -> Tensor:
    x = x.movedim(-1, 1) if channels_last else x
    y = functional.interpolate(x, sizes, mode="bilinear", align_corners=False)
    return y.movedim(1, -1) if channels_last else y


def _stretch_from_corners(x: Tensor, axis: int, factor: int) -> Tensor:
    """Make an axis longer: step i is at i / factor among those of x, as TensorFlow 1 has it.

    It computes the places in float32, with 1 / factor rounded (``resize_bilinear_op.cc``).
    """
    steps = x.shape[axis]
    rounded = torch.full((), 1 / factor, dtype=torch.float32, device=x.device)
    at = torch.arange(steps * factor, device=x.device) * rounded
    low = at.long()
    share = (at - low).to(x.dtype).reshape(-1, *[1] * (x.dim() - axis - 1))
    before = x.index_select(axis, low)
    after = x.index_select(axis, (low + 1).clamp(max=steps - 1))
    return before + (after - before) * share


class UpSampling(Described):
    """Repetition of steps, or interpolation between them.

    ``corners``: the corners of pixels are aligned, and not their centers.
    """

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
        if self.corners:
            for axis, factor in enumerate(self.factors, first):
                x = _stretch_from_corners(x, axis, factor)
            return x
        sizes = [x.shape[axis] * f for axis, f in enumerate(self.factors, first)]
        return _resize_bilinearly(x, sizes, channels_last=self.channels_last)


def up_sampling(layer: LayerSpec) -> nn.Module:
    """Build an UpSampling."""
    config = layer.config
    mode = config.get("interpolation", "nearest")
    if mode == "bilinear" and layer.semantics["bilinear"] == "corners or centers":
        raise UnsupportedOptionError(
            "UpSampling2D option interpolation='bilinear' of this Keras is not supported: "
            "TensorFlow 1.14 lays the corners of pixels on each other, 2.0 their middles, and the "
            "file does not tell them apart",
            "save it with interpolation='nearest' or, with TensorFlow 2.1 and later, 'bilinear'",
            place=layer.place,
        )
    return UpSampling(
        config["size"],
        mode=mode,
        corners=mode == "bilinear" and layer.semantics["bilinear"] == "corners",
        channels_last=config["data_format"] == "channels_last",
    )


class Resizing(Described):
    """Interpolation between pixels to a given size, without smoothing before.

    ``crops``: to the middle part that has the aspect ratio of that size.
    """

    def __init__(
        self, size: tuple[int, int], *, mode: str, crops: bool, channels_last: bool
    ) -> None:
        super().__init__()
        self.size, self.mode, self.crops = size, mode, crops
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        """Resize (B, H, W, C) -> (B, height, width, C), or with C before H."""
        first = 1 if self.channels_last else 2
        if self.crops:
            height, width = x.shape[first : first + 2]
            tall, wide = self.size
            part = (
                min(height, max(width * tall // wide, 1)),
                min(width, max(height * wide // tall, 1)),
            )
            x = cut_middle(x, part, first)
        if self.mode == "bilinear":
            return _resize_bilinearly(x, self.size, channels_last=self.channels_last)
        for axis, target in enumerate(self.size, first):
            x = resize_to_nearest(x, axis, target)
        return x


def resize_to_nearest(x: Tensor, axis: int, target: int) -> Tensor:
    """Make one axis ``target`` long, of the steps under the middles of the output's."""
    size = x.shape[axis]
    step = torch.full((), size / target, dtype=torch.float32, device=x.device)
    at = (torch.arange(target, device=x.device) + 0.5) * step
    return x.index_select(axis, at.long().clamp(max=size - 1))


def cut_middle(x: Tensor, size: Sequence[int], first: int) -> Tensor:
    """Keep so many steps of the axes from ``first`` on: those in the middle, or one before it."""
    for axis, steps in enumerate(size, first):
        x = x.narrow(axis, (x.shape[axis] - steps) // 2, steps)
    return x


def resizing(layer: LayerSpec) -> nn.Module:
    """Build a Resizing."""
    config = layer.config
    return Resizing(
        (config["height"], config["width"]),
        mode=config["interpolation"],
        crops=config["crop_to_aspect_ratio"],
        channels_last=config["data_format"] == "channels_last",
    )


CONVERTERS: Mapping[str, Converter] = {
    **by_axes("ZeroPadding{}D", Converter(of_options(Margins, "padding"), NONE)),
    **by_axes("Cropping{}D", Converter(cropping, NONE)),
    **by_axes("UpSampling{}D", Converter(up_sampling, NONE)),
    "Resizing": Converter(resizing, NONE),
}
