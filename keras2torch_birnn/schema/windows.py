"""Windows over time: convolution and pooling."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema.options import (
    Option,
    activation,
    choice,
    flag,
    optional,
    size,
    window,
)
from keras2torch_birnn.schema.row import Config, Schema, ShapeError, WeightShapes, known
from keras2torch_birnn.spec import Shape


def window_length(length: int | None, kernel: int, stride: int, padding: str) -> int | None:
    """Length of a 1D window operation's output (Keras ``conv_output_length``)."""
    if length is None:
        return None
    if padding == "valid":
        length = length - kernel + 1
        if length <= 0:
            raise ShapeError(f"a window of {kernel} does not fit the {length + kernel - 1} steps")
    return -(-length // stride)


def _time_axis(config: Config) -> int:
    return 1 if config["data_format"] == "channels_last" else 2


def _conv1d_weights(config: Config, shape: Shape | None) -> WeightShapes:
    shape = known(shape, rank=3)
    channels = shape[3 - _time_axis(config)] if shape else None
    groups = config["groups"]
    if config["filters"] % groups or (channels is not None and channels % groups):
        raise ShapeError(f"groups={groups} does not divide the channels")
    kernel: Shape = (
        config["kernel_size"],
        None if channels is None else channels // groups,
        config["filters"],
    )
    return (
        {"kernel": kernel, "bias": (config["filters"],)}
        if config["use_bias"]
        else {"kernel": kernel}
    )


def _conv1d_output(config: Config, shape: Shape | None) -> Shape | None:
    if (shape := known(shape, rank=3)) is None:
        return None
    extent = (config["kernel_size"] - 1) * config["dilation_rate"] + 1
    time = window_length(shape[_time_axis(config)], extent, config["strides"], config["padding"])
    if config["data_format"] == "channels_last":
        return (shape[0], time, config["filters"])
    return (shape[0], config["filters"], time)


def _pool1d_output(config: Config, shape: Shape | None) -> Shape | None:
    if (shape := known(shape, rank=3)) is None:
        return None
    axis = _time_axis(config)
    stride = config["strides"] or config["pool_size"]
    time = window_length(shape[axis], config["pool_size"], stride, config["padding"])
    return (*shape[:axis], time, *shape[axis + 1 :])


def _global_pool1d_output(config: Config, shape: Shape | None) -> Shape | None:
    if (shape := known(shape, rank=3)) is None:
        return None
    axis = _time_axis(config)
    kept = (1,) if config["keepdims"] else ()
    return (*shape[:axis], *kept, *shape[axis + 1 :])


_DATA_FORMAT = choice("channels_last", "channels_last", "channels_first")
_POOL: Mapping[str, Option] = {
    "pool_size": window(2),
    "strides": optional(window(None)),
    "padding": choice("valid", "valid", "same"),
    "data_format": _DATA_FORMAT,
}
_GLOBAL_POOL: Mapping[str, Option] = {"data_format": _DATA_FORMAT, "keepdims": flag(False)}

LAYERS: Mapping[str, Schema] = {
    "Conv1D": Schema(
        {
            "filters": size(),
            "kernel_size": window(),
            "strides": window(1),
            "padding": choice("valid", "valid", "same", "causal"),
            "data_format": _DATA_FORMAT,
            "dilation_rate": window(1),
            "groups": size(1),
            "activation": activation(),
            "use_bias": flag(True),
        },
        _conv1d_weights,
        _conv1d_output,
        aliases=("Convolution1D",),
    ),
    "MaxPooling1D": Schema(_POOL, output=_pool1d_output),
    "AveragePooling1D": Schema(_POOL, output=_pool1d_output),
    "GlobalMaxPooling1D": Schema(_GLOBAL_POOL, output=_global_pool1d_output),
    "GlobalAveragePooling1D": Schema(
        {**_GLOBAL_POOL, "use_mask": flag(True)}, output=_global_pool1d_output
    ),
}
