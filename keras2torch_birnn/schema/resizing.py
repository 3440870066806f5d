"""Layers that pad, crop, repeat or resize steps."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema.options import choice, flag, margins, size, window
from keras2torch_birnn.schema.row import Config, Schema, ShapeError
from keras2torch_birnn.schema.windows import DATA_FORMAT, resized
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
}
