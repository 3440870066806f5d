"""Layers that only move values."""

from __future__ import annotations

import math
from collections.abc import Mapping

from keras2torch_birnn.schema.options import choice, margins, size, sizes, window
from keras2torch_birnn.schema.row import Config, Schema, ShapeError, known
from keras2torch_birnn.schema.windows import DATA_FORMAT, channel_axis, resized, windowed
from keras2torch_birnn.spec import Shape


def _flatten(config: Config, shape: Shape | None) -> Shape | None:
    if shape is None:
        return None
    if None in shape[1:]:
        return (shape[0], None)
    return (shape[0], math.prod(s for s in shape[1:] if s is not None))


def _reshape(config: Config, shape: Shape | None) -> Shape:
    target: tuple[int, ...] = config["target_shape"]
    batch = shape[0] if shape else None
    total = _flatten(config, shape)
    free = [s for s in target if s == -1]
    fixed = math.prod(s for s in target if s != -1)
    if len(free) > 1:
        raise ShapeError(f"target_shape {list(target)} has more than one -1")
    if total is None or total[1] is None:
        return (batch, *(None if s == -1 else s for s in target))
    if (free and (not fixed or total[1] % fixed)) or (not free and total[1] != fixed):
        raise ShapeError(f"{total[1]} values do not fit target_shape {list(target)}")
    return (batch, *(total[1] // fixed if s == -1 else s for s in target))


def _permute(config: Config, shape: Shape | None) -> Shape | None:
    dims: tuple[int, ...] = config["dims"]
    if sorted(dims) != list(range(1, len(dims) + 1)):
        raise ShapeError(f"dims {list(dims)} is not a permutation of 1 to {len(dims)}")
    shape = known(shape, rank=len(dims) + 1)
    return None if shape is None else (shape[0], *(shape[d] for d in dims))


def _repeat_vector(config: Config, shape: Shape | None) -> Shape | None:
    shape = known(shape, rank=2)
    return None if shape is None else (shape[0], config["n"], shape[1])


def _padded(config: Config, shape: Shape | None) -> Shape | None:
    around: tuple[tuple[int, int], ...] = config["padding"]
    if (shape := windowed(shape, len(around))) is None:
        return None
    return resized(
        config,
        shape,
        lambda length, i: None if length is None else length + sum(around[i]),
        shape[channel_axis(config)],
    )


def _cropped(config: Config, shape: Shape | None) -> Shape | None:
    around: tuple[tuple[int, int], ...] = config["cropping"]
    if (shape := windowed(shape, len(around))) is None:
        return None

    def length(size_: int | None, axis: int) -> int | None:
        if size_ is not None and sum(around[axis]) >= size_:
            raise ShapeError(f"cropping {list(around[axis])} leaves nothing of {size_}")
        return None if size_ is None else size_ - sum(around[axis])

    return resized(config, shape, length, shape[channel_axis(config)])


def _upsampled(config: Config, shape: Shape | None) -> Shape | None:
    factors: tuple[int, ...] = config["size"]
    if (shape := windowed(shape, len(factors))) is None:
        return None
    smooth = config.get("interpolation", "nearest") != "nearest"

    def length(size_: int | None, axis: int) -> int | None:
        if size_ is None:
            return None
        if smooth and size_ * size_ * factors[axis] > _LARGEST_MATRIX:
            raise ShapeError(f"interpolation of {size_} steps, {factors[axis]} times as many")
        return size_ * factors[axis]

    return resized(config, shape, length, shape[channel_axis(config)])


# Weights of every step of the input for every one of the output: 128 MB while they are computed.
_LARGEST_MATRIX = 2**24


# Cropping1D and UpSampling1D have no data_format in Keras; their time is the second axis.
_LAST = {"data_format": choice("channels_last", "channels_last")}
_FORMAT = {"data_format": DATA_FORMAT}

INTERPOLATIONS = (
    *("nearest", "bilinear", "bicubic", "area"),
    *("lanczos3", "lanczos5", "gaussian", "mitchellcubic"),
)

LAYERS: Mapping[str, Schema] = {
    "Flatten": Schema(_FORMAT, output=_flatten),
    "Reshape": Schema({"target_shape": sizes(least=-1)}, output=_reshape),
    "Permute": Schema({"dims": sizes()}, output=_permute),
    "RepeatVector": Schema({"n": size()}, output=_repeat_vector),
    "ZeroPadding1D": Schema({"padding": margins(1, 1), **_FORMAT}, output=_padded),
    "ZeroPadding2D": Schema({"padding": margins(1, 2), **_FORMAT}, output=_padded),
    "ZeroPadding3D": Schema({"padding": margins(1, 3), **_FORMAT}, output=_padded),
    "Cropping1D": Schema({"cropping": margins(1, 1), **_LAST}, output=_cropped),
    "Cropping2D": Schema({"cropping": margins(0, 2), **_FORMAT}, output=_cropped),
    "Cropping3D": Schema({"cropping": margins(1, 3), **_FORMAT}, output=_cropped),
    "UpSampling1D": Schema({"size": window(2), **_LAST}, output=_upsampled),
    "UpSampling2D": Schema(
        {
            "size": window(2, 2),
            "interpolation": choice("nearest", *INTERPOLATIONS),
            # what bilinear lays on each other, and whose numbers bicubic's are
            "bilinear": choice("centers", "corners", "centers", "corners or centers"),
            "bicubic": choice("TensorFlow", "TensorFlow", "any backend"),
            **_FORMAT,
        },
        output=_upsampled,
    ),
    "UpSampling3D": Schema({"size": window(2, 3), **_FORMAT}, output=_upsampled),
}
