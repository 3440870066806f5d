"""LocallyConnected1D and 2D: convolutions with kernels of their own for every place.

Sources: ``layers/local.py`` of Keras 1.2.2 to 2.3.1 (``implementation`` 1 alone), and
``locally_connected`` of tf.keras 2.15 with ``conv_utils.conv_connected_inputs``. Keras 3 has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras2torch_birnn.schema.options import activation, choice, flag, size, window
from keras2torch_birnn.schema.row import Config, Schema, ShapeError, WeightShapes
from keras2torch_birnn.schema.windows import (
    DATA_FORMAT,
    channel_axis,
    resized,
    window_length,
    windowed,
)
from keras2torch_birnn.spec import Shape


@dataclass(frozen=True)
class Places:
    """One axis: window number ``i`` of ``size`` begins at ``i * stride - front``.

    With ``padding="same"`` the middle of a window is on a step: ``front`` is half its size, unlike
    TensorFlow's SAME. What reaches out of the ``length`` steps has no weights in Keras.
    """

    length: int
    count: int
    size: int
    stride: int
    front: int

    def around(self) -> tuple[int, int]:
        """Return how many steps the windows reach out in front and behind."""
        return self.front, max(0, self._beyond())

    def _beyond(self) -> int:
        return (self.count - 1) * self.stride - self.front + self.size - self.length

    def inside(self) -> int:
        """Count the steps of all windows together, without what reaches out."""
        beyond = self._beyond()
        return self.count * self.size - self._lost(self.front) - self._lost(beyond)

    def _lost(self, most: int) -> int:
        """Sum most + (most - stride) + ... while positive, at most one term for each window."""
        times = min(-(-max(most, 0) // self.stride), self.count)
        return times * most - self.stride * (times * (times - 1) // 2)


def places(config: Config, shape: Shape) -> tuple[Places, ...]:
    """Compute the windows of every axis for an input of this shape."""
    first = 1 if config["data_format"] == "channels_last" else 2
    found = []
    axes = zip(config["kernel_size"], config["strides"], shape[first:], strict=False)
    for size_, stride, length in axes:
        if length is None:
            raise ShapeError("the number of its steps has to be known")
        if size_ > 2 * length:  # it would ask for room that no weights need
            raise ShapeError(f"a window of {size_} over {length} steps")
        count = window_length(length, size_, stride, config["padding"]) or 0
        front = size_ // 2 if config["padding"] == "same" else 0
        found.append(Places(length, count, size_, stride, front))
    return tuple(found)


def windows_of(axes: Sequence[Places]) -> tuple[tuple[Any, ...], ...]:
    """Return sizes, strides, counts and what reaches out, each for all axes."""
    rows = [(axis.size, axis.stride, axis.count, axis.around()) for axis in axes]
    return tuple(zip(*rows, strict=True))


def _weights(config: Config, shape: Shape | None) -> WeightShapes:
    if (shape := windowed(shape, len(config["kernel_size"]))) is None:
        raise ShapeError("the shape of its input has to be known")
    axes, channels = places(config, shape), shape[channel_axis(config)]
    if channels is None:
        raise ShapeError("the number of its channels has to be known")
    last, filters = config["data_format"] == "channels_last", config["filters"]
    counts, lengths = [axis.count for axis in axes], [axis.length for axis in axes]
    inner = math.prod(config["kernel_size"]) * channels
    inside = math.prod(axis.inside() for axis in axes) * channels * filters
    kernels: Mapping[int, Shape] = {
        1: (math.prod(counts), inner, filters),
        2: (*lengths, channels, *counts, filters) if last else (
            channels, *lengths, filters, *counts
        ),
        3: (inside,),
    }  # fmt: skip
    kernel = {"kernel": kernels[config["implementation"]]}
    return {**kernel, "bias": (*counts, filters)} if config["use_bias"] else kernel


def held(config: Config, shape: Shape) -> int:
    """Count the numbers of a converted layer: a whole window for every place, and the bias.

    That is far less than implementation 2 has in Keras, and a little more than implementation 3.
    """
    axes, channels = places(config, shape), shape[channel_axis(config)] or 0
    inner = math.prod(axis.size for axis in axes) * channels
    count = math.prod(axis.count for axis in axes)
    return count * (inner + bool(config["use_bias"])) * int(config["filters"])


def _output(config: Config, shape: Shape | None) -> Shape | None:
    if config["padding"] == "same" and config["implementation"] == 1:
        raise ShapeError("padding='same' with implementation=1, which Keras refuses")
    rank = len(config["kernel_size"])
    axes = places(config, shape) if (shape := windowed(shape, rank)) else ()
    return resized(config, shape, rank, lambda _, i: axes[i].count, config["filters"])


def _local(rank: int) -> Schema:
    options = {
        "filters": size(),
        "kernel_size": window(rank=rank),
        "strides": window(1, rank),
        "padding": choice("valid", "valid", "same"),
        "data_format": DATA_FORMAT,
        "activation": activation(),
        "use_bias": flag(True),
        "implementation": choice(1, 1, 2, 3),
    }
    refused = ("a number of steps that the file does not tell",)
    return Schema(options, _weights, _output, refused=refused)


LAYERS: Mapping[str, Schema] = {
    "LocallyConnected1D": _local(1),
    "LocallyConnected2D": _local(2),
}
