"""Windows over the axes between batch and channels: shapes that their layers share.

A layer of rank 1 works on (B, T, C), one of rank 2 on (B, H, W, C), one of rank 3 on an axis more;
``channels_first`` puts C second. Windows, strides and dilations are tuples of one size per axis.
"""

from __future__ import annotations

from collections.abc import Callable

from keras2torch_birnn.schema.options import choice
from keras2torch_birnn.schema.row import Config, ShapeError, known
from keras2torch_birnn.spec import Shape

DATA_FORMAT = choice("channels_last", "channels_last", "channels_first")


def channel_axis(config: Config) -> int:
    """Return the axis of the channels."""
    return -1 if config["data_format"] == "channels_last" else 1


def windowed(shape: Shape | None, rank: int) -> Shape | None:
    """Return the shape if it has ``rank`` axes between batch and channels."""
    return known(shape, rank=rank + 2)


def resized(
    config: Config,
    shape: Shape | None,
    rank: int,
    length: Callable[[int | None, int], int | None],
    channels: int | None = None,
) -> Shape | None:
    """Return the shape with ``length(size, i)`` on window axis number i of ``rank``.

    channels: other ones than the input's. None if the shape is unknown.
    """
    if (shape := windowed(shape, rank)) is None:
        return None
    channels = channels or shape[channel_axis(config)]
    first = 1 if config["data_format"] == "channels_last" else 2
    sizes = [length(size, i) for i, size in enumerate(shape[first : first + rank])]
    return (shape[0], *sizes, channels) if first == 1 else (shape[0], channels, *sizes)


def window_length(length: int | None, extent: int, stride: int, padding: str) -> int | None:
    """Compute the length of a window's output on one axis (Keras ``conv_output_length``)."""
    if length is None:
        return None
    if padding == "valid":
        length = length - extent + 1
        if length <= 0:
            raise ShapeError(f"a window of {extent} does not fit the {length + extent - 1} steps")
    return -(-length // stride)
