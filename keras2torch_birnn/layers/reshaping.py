"""Layers that give values another shape, pad, crop or resize them, or pool them.

Masks end here, but in GlobalAveragePooling1D, as they do in Keras.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.layers.convolution import is_padded, is_traced, pad
from keras2torch_birnn.layers.functional import max_pool1d, same_padding
from keras2torch_birnn.layers.registry import (
    NONE,
    USES,
    Converter,
    Described,
    MaskFlow,
    Table,
    by_axes,
    of_options,
)
from keras2torch_birnn.schema.row import for_ranks
from keras2torch_birnn.spec import LayerSpec

# ---- the same values in another shape ------------------------------------------------------------


class Flatten(nn.Module):
    """(B, ...) -> (B, product). With ``channels_first`` the channels go last before."""

    def __init__(self, *, channels_first: bool) -> None:
        super().__init__()
        self.channels_first = channels_first

    def forward(self, x: Tensor) -> Tensor:
        """Flatten, row-major from the first axis after B."""
        if x.dim() == 1:
            return x[:, None]
        if self.channels_first and x.dim() > 2:
            x = x.movedim(1, -1)
        return x.flatten(1)


def flatten(layer: LayerSpec) -> nn.Module:
    """Build a Flatten; torch's own takes no rows of a single number."""
    channels_first = layer.config["data_format"] == "channels_first"
    single = layer.input_shape is not None and len(layer.input_shape) == 1
    return Flatten(channels_first=channels_first) if channels_first or single else nn.Flatten()


class Reshape(Described):
    """(B, ...) -> (B, *target_shape); one size may be -1."""

    def __init__(self, target_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.target_shape = target_shape

    def forward(self, x: Tensor) -> Tensor:
        """Reshape, row-major."""
        return x.reshape(x.shape[0], *self.target_shape)


class Permute(Described):
    """Permutation of the axes after B; ``dims`` count from 1."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """Permute: output axis i is input axis dims[i]."""
        return x.permute(0, *self.dims)


class RepeatVector(Described):
    """(B, F) -> (B, n, F)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        """Repeat the vector at every step."""
        return x[:, None, :].expand(-1, self.n, -1)


# ---- padding, cropping, resizing -----------------------------------------------------------------


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


# ---- pooling -------------------------------------------------------------------------------------

# By kind, for one axis, two and three.
_POOL: Mapping[str, Sequence[Callable[..., Tensor]]] = {
    "max": (max_pool1d, functional.max_pool2d, functional.max_pool3d),
    "average": (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d),
}


class Pooling(Described):
    """Maximum or mean of windows; padded steps count in neither."""

    def __init__(
        self,
        size: tuple[int, ...],
        stride: tuple[int, ...] | None,
        padding: str,
        *,
        kind: str,
        channels_last: bool,
    ) -> None:
        super().__init__()
        self.kind, self.size, self.stride = kind, size, stride or size
        self.padding, self.channels_last = padding, channels_last

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, T, C) -> (B, T', C), or with C before T if channels_first; two axes likewise."""
        x = x.movedim(-1, 1) if self.channels_last else x
        around = [(0, 0)] * len(self.size)
        if self.padding == "same":
            sizes = zip(x.shape[2:], self.size, self.stride, strict=True)
            around = [same_padding(*size) for size in sizes]
        if not is_traced() and all(before == after for before, after in around):
            y = self._pool_evenly(x, [before for before, _ in around])
        else:
            y = self._pool(x, around)
        return y.movedim(1, -1) if self.channels_last else y

    def _pool_evenly(self, x: Tensor, padding: Sequence[int]) -> Tensor:
        """Pool (B, C, T) with symmetric padding, which torch does inside, without a copy."""
        size, stride = self.size, self.stride
        one_axis = len(size) == 1
        if one_axis:
            x, size, stride, padding = x.unsqueeze(2), (1, *size), (1, *stride), (0, *padding)
        pool = _POOL[self.kind][len(size) - 1]
        rest = {} if self.kind == "max" else {"count_include_pad": False}
        y = pool(x, size, stride, padding, **rest)
        return y.squeeze(2) if one_axis else y

    def _pool(self, x: Tensor, around: Sequence[tuple[int, int]]) -> Tensor:
        """Pool (B, C, T) padded by any numbers, also by such that a graph computes."""
        pool = _POOL[self.kind][len(self.size) - 1]
        if self.kind == "max":
            return pool(pad(x, around, value=-torch.inf), self.size, self.stride)
        y = pool(pad(x, around), self.size, self.stride)
        if is_padded(around):
            ones = pad(x.new_ones(1, 1, *x.shape[2:]), around)
            y = y / pool(ones, self.size, self.stride)
        return y


class GlobalPooling(Described):
    """Maximum or mean over all steps; the mean counts valid steps only, if there is a mask."""

    def __init__(self, keepdims: bool, *, kind: str, rank: int, channels_last: bool) -> None:
        super().__init__()
        self.kind, self.rank = kind, rank
        self.keepdims, self.channels_last = keepdims, channels_last
        first = 1 if channels_last else 2
        self.axes = tuple(range(first, first + rank))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool (B, T, C) -> (B, C). A row without valid step is 0 / 0 = NaN, as in Keras."""
        if self.kind == "max":
            return x.amax(dim=self.axes, keepdim=self.keepdims)
        if mask is None:
            return x.mean(dim=self.axes, keepdim=self.keepdims)
        weight = mask.to(x.dtype).unsqueeze(3 - self.axes[0])  # one axis: a mask is (B, T)
        total = (x * weight).sum(dim=self.axes, keepdim=self.keepdims)
        return total / weight.sum(dim=self.axes, keepdim=self.keepdims)


def _uses_mask(layer: LayerSpec) -> MaskFlow:
    return USES if layer.semantics.get("use_mask") else NONE


def _pools(kind: str, of_all: MaskFlow | Callable[[LayerSpec], MaskFlow]) -> Table:
    """Return the rows of a kind; ``of_all``: the mask flow of pooling over all steps."""
    windows = of_options(Pooling, "pool_size", "strides", "padding", kind=kind)
    word = kind.capitalize()

    def of_steps(rank: int) -> Converter:
        return Converter(of_options(GlobalPooling, "keepdims", kind=kind, rank=rank), of_all)

    return {
        **by_axes(f"{word}Pooling{{}}D", Converter(windows, NONE)),
        **for_ranks(f"Global{word}Pooling{{}}D", of_steps),
    }


CONVERTERS: Mapping[str, Converter] = {
    "Flatten": Converter(flatten, NONE),
    "Reshape": Converter(of_options(Reshape, "target_shape"), NONE),
    "Permute": Converter(of_options(Permute, "dims"), NONE),
    "RepeatVector": Converter(of_options(RepeatVector, "n"), NONE),
    **by_axes("ZeroPadding{}D", Converter(of_options(Margins, "padding"), NONE)),
    **by_axes("Cropping{}D", Converter(cropping, NONE)),
    **by_axes("UpSampling{}D", Converter(up_sampling, NONE)),
    "Resizing": Converter(resizing, NONE),
    **_pools("max", NONE),
    **_pools("average", _uses_mask),
}
