"""Pooling over one axis, two or three, in windows and at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from keras2torch_birnn.limits import MAX_WINDOWS
from keras2torch_birnn.schema.options import Option, choice, flag, optional, window
from keras2torch_birnn.schema.row import Config, Schema, ShapeError
from keras2torch_birnn.schema.windows import (
    DATA_FORMAT,
    channel_axis,
    resized,
    window_length,
    windowed,
)
from keras2torch_birnn.spec import Shape


def _pool_output(config: Config, shape: Shape | None) -> Shape | None:
    sizes: Sequence[int] = config["pool_size"]
    strides: Sequence[int] = config["strides"] or sizes
    if (shape := windowed(shape, len(sizes))) is None:
        return None
    return resized(
        config,
        shape,
        lambda size, i: window_length(size, sizes[i], strides[i], config["padding"]),
        shape[channel_axis(config)],
    )


def _global_pool_output(rank: int) -> Callable[[Config, Shape | None], Shape | None]:
    def output(config: Config, shape: Shape | None) -> Shape | None:
        if (shape := windowed(shape, rank)) is None:
            return None
        channels = shape[channel_axis(config)]
        if config["keepdims"]:
            return resized(config, shape, lambda size, i: 1, channels)
        return (shape[0], channels)

    return output


def _adaptive_output(config: Config, shape: Shape | None) -> Shape | None:
    sizes: Sequence[int] = config["output_size"]
    if max(sizes) > MAX_WINDOWS:
        raise ShapeError(f"{max(sizes)} windows on an axis, more than {MAX_WINDOWS}")
    if (shape := windowed(shape, len(sizes))) is None:
        return None
    return resized(config, shape, lambda size, i: sizes[i], shape[channel_axis(config)])


def _adaptive(rank: int) -> Schema:
    options = {"output_size": window(rank=rank), "data_format": DATA_FORMAT}
    return Schema(options, output=_adaptive_output)


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
    output = _global_pool_output(rank)
    return Schema(options, output=output, semantics=semantics)


LAYERS: Mapping[str, Schema] = {
    "MaxPooling1D": _pool(1),
    "MaxPooling2D": _pool(2),
    "MaxPooling3D": _pool(3),
    "AveragePooling1D": _pool(1),
    "AveragePooling2D": _pool(2),
    "AveragePooling3D": _pool(3),
    "GlobalMaxPooling1D": _global_pool(1),
    "GlobalMaxPooling2D": _global_pool(2),
    "GlobalMaxPooling3D": _global_pool(3),
    "GlobalAveragePooling1D": _global_pool(1, use_mask=flag(True)),
    "GlobalAveragePooling2D": _global_pool(2),
    "GlobalAveragePooling3D": _global_pool(3),
    "AdaptiveMaxPooling1D": _adaptive(1),
    "AdaptiveMaxPooling2D": _adaptive(2),
    "AdaptiveMaxPooling3D": _adaptive(3),
    "AdaptiveAveragePooling1D": _adaptive(1),
    "AdaptiveAveragePooling2D": _adaptive(2),
    "AdaptiveAveragePooling3D": _adaptive(3),
}
