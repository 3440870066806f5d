"""Pooling over one axis, two or three, in windows and at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from keras2torch_birnn.limits import MAX_WINDOWS
from keras2torch_birnn.schema.options import Option, choice, flag, optional, window
from keras2torch_birnn.schema.pages import for_ranks
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
    **for_ranks("MaxPooling{}D", _pool),
    **for_ranks("AveragePooling{}D", _pool),
    **for_ranks("GlobalMaxPooling{}D", _global_pool),
    "GlobalAveragePooling1D": _global_pool(1, use_mask=flag(True)),
    "GlobalAveragePooling2D": _global_pool(2),
    "GlobalAveragePooling3D": _global_pool(3),
    **for_ranks("AdaptiveMaxPooling{}D", _adaptive),
    **for_ranks("AdaptiveAveragePooling{}D", _adaptive),
}
