"""Layers that pad, crop, repeat or resize steps. Masks end here, as they do in Keras."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.layers.convolution import pad
from keras2torch_birnn.layers.interpolation import resize, resize_to_nearest
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


class UpSampling(Described):
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
                target = x.shape[axis] * factor
                x = resize(x, axis, target, 1 / factor, self.mode, corners=self.corners)
            return x
        sizes = [x.shape[axis] * f for axis, f in enumerate(self.factors, first)]
        return _resize_bilinearly(x, sizes, channels_last=self.channels_last)


# (option, what is known of it) -> what is not
_UNKNOWN: Mapping[tuple[str, Any], str] = {
    ("bilinear", "corners or centers"): "TensorFlow 1.14 lays the corners of pixels on each other, "
    "2.0 their middles, and the file does not tell them apart",
    ("bicubic", "any backend"): "every backend of Keras 3 computes it in another way",
}


def _refuse_unknown(layer: LayerSpec, mode: str) -> None:
    reason = _UNKNOWN.get((mode, layer.semantics.get(mode)))
    if reason is not None:
        raise UnsupportedOptionError(
            f"{layer.class_name} option interpolation={mode!r} of this Keras is not supported: "
            f"{reason}",
            "save it with interpolation='nearest' or, with TensorFlow 2.1 and later, 'bilinear'",
            place=layer.place,
        )


def up_sampling(layer: LayerSpec) -> nn.Module:
    """Build an UpSampling."""
    config = layer.config
    mode = config.get("interpolation", "nearest")
    _refuse_unknown(layer, mode)
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
            if self.mode == "nearest":
                x = resize_to_nearest(x, axis, target)
            else:
                x = resize(x, axis, target, x.shape[axis] / target, self.mode)
        return x


def cut_middle(x: Tensor, size: Sequence[int], first: int) -> Tensor:
    """Keep so many steps of the axes from ``first`` on: those in the middle, or one before it."""
    for axis, steps in enumerate(size, first):
        x = x.narrow(axis, (x.shape[axis] - steps) // 2, steps)
    return x


class CenterCrop(Resizing):
    """The middle of an image; an image that is smaller is resized, and cropped to the ratio."""

    def __init__(self, size: tuple[int, int], *, channels_last: bool) -> None:
        super().__init__(size, mode="bilinear", crops=True, channels_last=channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Crop (B, H, W, C) -> (B, height, width, C), or with C before H."""
        first = 1 if self.channels_last else 2
        if all(have >= want for have, want in zip(x.shape[first:], self.size, strict=False)):
            return cut_middle(x, self.size, first)
        return super().forward(x)


def _to_size(
    layer: LayerSpec, module: Callable[..., nn.Module] = Resizing, **options: Any
) -> nn.Module:
    """Build a module that makes images as large as its layer says."""
    size, order = (layer.config["height"], layer.config["width"]), layer.config["data_format"]
    return module(size, **options, channels_last=order == "channels_last")


def resizing(layer: LayerSpec) -> nn.Module:
    """Build a Resizing."""
    mode, crops = layer.config["interpolation"], layer.config["crop_to_aspect_ratio"]
    _refuse_unknown(layer, mode)
    return _to_size(layer, mode=mode, crops=crops)


def random_crop(layer: LayerSpec) -> nn.Module:
    """Build a RandomCrop: at inference Keras resizes, and since 3.8 it leaves images alone."""
    resizes = layer.semantics["resizes"]
    if resizes is None:
        raise UnsupportedOptionError(
            "RandomCrop of this Keras is not supported: it resizes in a way of its own",
            "save the model with another Keras",
            place=layer.place,
        )
    if not resizes:
        return nn.Identity()
    return _to_size(layer, mode="bilinear", crops=True)


CONVERTERS: Mapping[str, Converter] = {
    **by_axes("ZeroPadding{}D", Converter(of_options(Margins, "padding"), NONE)),
    **by_axes("Cropping{}D", Converter(cropping, NONE)),
    **by_axes("UpSampling{}D", Converter(up_sampling, NONE)),
    "Resizing": Converter(resizing, NONE),
    "CenterCrop": Converter(partial(_to_size, module=CenterCrop), NONE),
    "RandomCrop": Converter(random_crop, NONE),
}
