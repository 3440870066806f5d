"""Windows over the axes between batch and channels: what they share, and pooling.

A layer of rank 1 works on (B, T, C), one of rank 2 on (B, H, W, C), one of rank 3 on an axis more;
``channels_first`` puts C second. Windows, strides and dilations are tuples of one size per axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras2torch_birnn.schema.options import Option, choice, flag, optional, window
from keras2torch_birnn.schema.row import Config, Schema, ShapeError, known
from keras2torch_birnn.spec import Shape

DATA_FORMAT = choice("channels_last", "channels_last", "channels_first")


def channel_axis(config: Config) -> int:
    """The axis of the channels."""
    return -1 if config["data_format"] == "channels_last" else 1


def windowed(shape: Shape | None, rank: int) -> Shape | None:
    """The shape, if it has ``rank`` axes between batch and channels."""
    return known(shape, rank=rank + 2)


def resized(
    config: Config,
    shape: Shape,
    length: Callable[[int | None, int], int | None],
    channels: int | None,
) -> Shape:
    """The shape with ``length(size, i)`` on window axis number i, and other channels."""
    first = 1 if config["data_format"] == "channels_last" else 2
    sizes = [length(size, i) for i, size in enumerate(shape[first : first + len(shape) - 2])]
    return (shape[0], *sizes, channels) if first == 1 else (shape[0], channels, *sizes)


def window_length(length: int | None, extent: int, stride: int, padding: str) -> int | None:
    """Length of a window operation's output on one axis (Keras ``conv_output_length``)."""
    if length is None:
        return None
    if padding == "valid":
        length = length - extent + 1
        if length <= 0:
            raise ShapeError(f"a window of {extent} does not fit the {length + extent - 1} steps")
    return -(-length // stride)


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


def _pool(rank: int, alias: str) -> Schema:
    options = {
        "pool_size": window(2, rank),
        "strides": optional(window(None, rank)),
        "padding": choice("valid", "valid", "same"),
        "data_format": DATA_FORMAT,
    }
    return Schema(options, output=_pool_output, aliases=(alias,))


def _global_pool(rank: int, alias: str, **more: Option) -> Schema:
    options: Mapping[str, Any] = {"data_format": DATA_FORMAT, "keepdims": flag(False), **more}
    return Schema(options, output=_global_pool_output(rank), aliases=(alias,))


LAYERS: Mapping[str, Schema] = {
    "MaxPooling1D": _pool(1, "MaxPool1D"),
    "MaxPooling2D": _pool(2, "MaxPool2D"),
    "MaxPooling3D": _pool(3, "MaxPool3D"),
    "AveragePooling1D": _pool(1, "AvgPool1D"),
    "AveragePooling2D": _pool(2, "AvgPool2D"),
    "AveragePooling3D": _pool(3, "AvgPool3D"),
    "GlobalMaxPooling1D": _global_pool(1, "GlobalMaxPool1D"),
    "GlobalMaxPooling2D": _global_pool(2, "GlobalMaxPool2D"),
    "GlobalMaxPooling3D": _global_pool(3, "GlobalMaxPool3D"),
    "GlobalAveragePooling1D": _global_pool(1, "GlobalAvgPool1D", use_mask=flag(True)),
    "GlobalAveragePooling2D": _global_pool(2, "GlobalAvgPool2D"),
    "GlobalAveragePooling3D": _global_pool(3, "GlobalAvgPool3D"),
}
