"""Layers that pad, crop, repeat or resize steps."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.limits import MAX_RESIZING_WEIGHTS
from keras2torch_birnn.schema.options import choice, flag, margins, size, window
from keras2torch_birnn.schema.row import Config, Schema, ShapeError
from keras2torch_birnn.schema.windows import DATA_FORMAT, resized, windowed
from keras2torch_birnn.spec import Shape


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


# Interpolations that are computed without a matrix of all input steps and all output steps.
_WITHOUT_MATRIX = ("nearest", "bilinear")


def _upsampled(config: Config, shape: Shape | None) -> Shape | None:
    factors: tuple[int, ...] = config["size"]
    mode = config.get("interpolation", "nearest")
    has_matrix = mode not in _WITHOUT_MATRIX or config.get("bilinear") == "corners"

    def length(size_: int | None, axis: int) -> int | None:
        if size_ is None:
            return None
        if has_matrix and size_ * size_ * factors[axis] > MAX_RESIZING_WEIGHTS:
            raise ShapeError(f"interpolation of {size_} steps, {factors[axis]} times as many")
        return size_ * factors[axis]

    return resized(config, shape, len(factors), length)


def _to_size(config: Config, shape: Shape | None) -> Shape | None:
    size_: tuple[int, int] = (config["height"], config["width"])
    has_matrix = config.get("interpolation", "bilinear") not in _WITHOUT_MATRIX

    def length(steps: int | None, axis: int) -> int:
        if has_matrix and steps is not None and steps * size_[axis] > MAX_RESIZING_WEIGHTS:
            raise ShapeError(f"interpolation of {steps} steps to {size_[axis]}")
        return size_[axis]

    return resized(config, shape, 2, length)


def _cropped_in_training(config: Config, shape: Shape | None) -> Shape | None:
    return _to_size(config, shape) if config["resizes"] else windowed(shape, 2)


# Cropping1D and UpSampling1D have no data_format in Keras; their time is the second axis.
_LAST = {"data_format": choice("channels_last", "channels_last")}
INTERPOLATIONS = (
    *("nearest", "bilinear", "bicubic", "area"),
    *("lanczos3", "lanczos5", "gaussian", "mitchellcubic"),
)
_FORMAT = {"data_format": DATA_FORMAT}
_SIZE = {"height": size(), "width": size()}
# whose numbers bicubic has
_BICUBIC = {"bicubic": choice("TensorFlow", "TensorFlow", "any backend")}

LAYERS: Mapping[str, Schema] = {
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
            **_FORMAT,
        },
        # bilinear: the points of pixels that are aligned
        semantics={
            "bilinear": choice("centers", "corners", "centers", "corners or centers"),
            **_BICUBIC,
        },
        output=_upsampled,
        refused=(
            "bilinear of tf.keras 2.2.4 (TensorFlow 1.13 to 2.0)",
            "bicubic of Keras 3",
        ),
    ),
    "UpSampling3D": Schema({"size": window(2, 3), **_FORMAT}, output=_upsampled),
    "Resizing": Schema(
        {
            **_SIZE,
            "interpolation": choice("bilinear", *INTERPOLATIONS),
            "crop_to_aspect_ratio": flag(False),
            "pad_to_aspect_ratio": choice(False, False),
            "antialias": choice(False, False),
            **_FORMAT,
        },
        semantics={**_BICUBIC, "keeps_integers": flag(False)},
        output=_to_size,
        ignored=("fill_mode", "fill_value"),
        refused=("pad_to_aspect_ratio=True", "antialias=True", "bicubic of Keras 3"),
    ),
    "CenterCrop": Schema({**_SIZE, **_FORMAT}, output=_to_size),
    # in training a window at random; else resized, or nothing since Keras 3.8
    "RandomCrop": Schema(
        {**_SIZE, **_FORMAT},
        semantics={"resizes": choice(True, True, False, None), "keeps_integers": flag(False)},
        output=_cropped_in_training,
        refused=("tf.keras up to 2.9; Keras 3.6 and 3.7",),
    ),
}
