"""Layers that give values another shape, pad, crop or resize them, or pool them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from keras2torch_birnn.schema.convolution import channel_axis, resized, window_length
from keras2torch_birnn.schema.operations.movement import product
from keras2torch_birnn.schema.options import (
    DATA_FORMAT,
    Option,
    choice,
    flag,
    margins,
    optional,
    size,
    sizes,
    window,
)
from keras2torch_birnn.schema.row import Config, Schema, ShapeError, for_ranks, known
from keras2torch_birnn.spec import Shape

# ---- the same values in another shape ------------------------------------------------------------


def _flatten(config: Config, shape: Shape | None) -> Shape | None:
    return None if shape is None else (shape[0], product(shape[1:]))


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


# ---- padding, cropping, resizing -----------------------------------------------------------------


def _padded(config: Config, shape: Shape | None) -> Shape | None:
    around: tuple[tuple[int, int], ...] = config["padding"]
    return resized(
        config,
        shape,
        len(around),
        lambda length, i: None if length is None else length + sum(around[i]),
    )


def _cropped(config: Config, shape: Shape | None) -> Shape | None:
    around: tuple[tuple[int, int], ...] = config["cropping"]

    def length(size_: int | None, axis: int) -> int | None:
        if size_ is not None and sum(around[axis]) >= size_:
            raise ShapeError(f"cropping {list(around[axis])} leaves nothing of {size_}")
        return None if size_ is None else size_ - sum(around[axis])

    return resized(config, shape, len(around), length)


def _upsampled(config: Config, shape: Shape | None) -> Shape | None:
    factors: tuple[int, ...] = config["size"]
    return resized(
        config,
        shape,
        len(factors),
        lambda length, i: None if length is None else length * factors[i],
    )


def _to_size(config: Config, shape: Shape | None) -> Shape | None:
    size_: tuple[int, int] = (config["height"], config["width"])
    return resized(config, shape, 2, lambda length, i: size_[i])


# Cropping1D and UpSampling1D have no data_format in Keras; their time is the second axis.
_LAST = {"data_format": choice("channels_last", "channels_last")}
_INTERPOLATIONS = ("nearest", "bilinear")
_FORMAT = {"data_format": DATA_FORMAT}


# ---- pooling -------------------------------------------------------------------------------------


def _pool_output(config: Config, shape: Shape | None) -> Shape | None:
    sizes: Sequence[int] = config["pool_size"]
    strides: Sequence[int] = config["strides"] or sizes
    return resized(
        config,
        shape,
        len(sizes),
        lambda size, i: window_length(size, sizes[i], strides[i], config["padding"]),
    )


def _global_pool_output(rank: int, config: Config, shape: Shape | None) -> Shape | None:
    kept = resized(config, shape, rank, lambda size, i: 1)
    return kept if kept is None or config["keepdims"] else (kept[0], kept[channel_axis(config)])


def _pool(rank: int) -> Schema:
    options = {
        "pool_size": window(2, rank),
        "strides": optional(window(None, rank)),
        "padding": choice("valid", "valid", "same"),
        "data_format": DATA_FORMAT,
    }
    return Schema(options, output=_pool_output)


def _global_pool(rank: int, **semantics: Option) -> Schema:
    options = {"data_format": DATA_FORMAT, "keepdims": flag(False)}
    return Schema(options, output=partial(_global_pool_output, rank), semantics=semantics)


LAYERS: Mapping[str, Schema] = {
    "Flatten": Schema({"data_format": DATA_FORMAT}, output=_flatten),
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
            "interpolation": choice("nearest", *_INTERPOLATIONS),
            **_FORMAT,
        },
        # bilinear: the points of pixels that are aligned
        semantics={
            "bilinear": choice("centers", "corners", "centers", "corners or centers"),
        },
        output=_upsampled,
        refused=(
            "bilinear of tf.keras 2.2.4 (TensorFlow 1.13 to 2.0)",
            "area, bicubic, gaussian, lanczos, mitchellcubic",
        ),
    ),
    "UpSampling3D": Schema({"size": window(2, 3), **_FORMAT}, output=_upsampled),
    "Resizing": Schema(
        {
            "height": size(),
            "width": size(),
            "interpolation": choice("bilinear", *_INTERPOLATIONS),
            "crop_to_aspect_ratio": flag(False),
            "pad_to_aspect_ratio": choice(False, False),
            "antialias": choice(False, False),
            **_FORMAT,
        },
        semantics={"keeps_integers": flag(False)},
        output=_to_size,
        ignored=("fill_mode", "fill_value"),
        refused=(
            "pad_to_aspect_ratio=True",
            "antialias=True",
            "area, bicubic, gaussian, lanczos, mitchellcubic",
        ),
    ),
    **for_ranks("MaxPooling{}D", _pool),
    **for_ranks("AveragePooling{}D", _pool),
    **for_ranks("GlobalMaxPooling{}D", _global_pool),
    "GlobalAveragePooling1D": _global_pool(1, use_mask=flag(True)),
    "GlobalAveragePooling2D": _global_pool(2),
    "GlobalAveragePooling3D": _global_pool(3),
}
