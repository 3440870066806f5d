"""Convolutions and ConvLSTM over one axis, two or three, and the windows that they share.

A layer of rank 1 works on (B, T, C), one of rank 2 on (B, H, W, C), one of rank 3 on an axis more;
``channels_first`` puts C second. Windows, strides and dilations are tuples of one size per axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from keras2torch_birnn.schema.options import (
    DATA_FORMAT,
    REQUIRED,
    Option,
    activation,
    choice,
    flag,
    number,
    optional,
    size,
    window,
)
from keras2torch_birnn.schema.recurrent import LOOP_OPTIONS, LOOP_SEMANTICS, sequence_output
from keras2torch_birnn.schema.row import Config, Schema, ShapeError, WeightShapes, for_ranks, known
from keras2torch_birnn.spec import Shape

# ---- windows -------------------------------------------------------------------------------------


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


# ---- convolutions --------------------------------------------------------------------------------


def _channels(config: Config, shape: Shape | None) -> int | None:
    shape = windowed(shape, len(config["kernel_size"]))
    return None if shape is None else shape[channel_axis(config)]


def _times(channels: int | None, factor: int) -> int | None:
    return None if channels is None else channels * factor


def _with_bias(config: Config, kernels: Mapping[str, Shape], filters: int | None) -> WeightShapes:
    return {**kernels, "bias": (filters,)} if config["use_bias"] else kernels


def _conv_weights(config: Config, shape: Shape | None) -> WeightShapes:
    channels, groups, filters = _channels(config, shape), config["groups"], config["filters"]
    if filters % groups or (channels is not None and channels % groups):
        raise ShapeError(f"groups={groups} does not divide the channels")
    inner = None if channels is None else channels // groups
    return _with_bias(config, {"kernel": (*config["kernel_size"], inner, filters)}, filters)


def _depthwise_weights(config: Config, shape: Shape | None) -> WeightShapes:
    channels, multiplier = _channels(config, shape), config["depth_multiplier"]
    kernels = {"depthwise_kernel": (*config["kernel_size"], channels, multiplier)}
    return _with_bias(config, kernels, _times(channels, multiplier))


def _separable_weights(config: Config, shape: Shape | None) -> WeightShapes:
    channels, multiplier = _channels(config, shape), config["depth_multiplier"]
    points = (1,) * len(config["kernel_size"])
    kernels: Mapping[str, Shape] = {
        "depthwise_kernel": (*config["kernel_size"], channels, multiplier),
        "pointwise_kernel": (*points, _times(channels, multiplier), config["filters"]),
    }
    return _with_bias(config, kernels, config["filters"])


def _transposed_weights(config: Config, shape: Shape | None) -> WeightShapes:
    filters = config["filters"]
    kernel = (*config["kernel_size"], filters, _channels(config, shape))
    return _with_bias(config, {"kernel": kernel}, filters)


def _extent(config: Config, axis: int) -> int:
    size_: int = config["kernel_size"][axis]
    return (size_ - 1) * int(config["dilation_rate"][axis]) + 1


def conv_output(config: Config, shape: Shape | None) -> Shape | None:
    """Compute the output shape of a convolution that is not transposed."""
    return resized(
        config,
        shape,
        len(config["kernel_size"]),
        lambda length, i: window_length(
            length, _extent(config, i), config["strides"][i], config["padding"]
        ),
        config.get("filters") or _times(_channels(config, shape), config["depth_multiplier"]),
    )


def transposed_length(config: Config, length: int | None, axis: int) -> int | None:
    """Compute the length on one axis (``deconv_output_length`` of Keras 2.15, ``conv_utils``).

    With ``padding="same"`` an ``output_padding`` can ask for a length that no convolution would
    bring back to the input's; TensorFlow refuses to compute it. ``output_size`` says the length.
    """
    extent, stride = _extent(config, axis), config["strides"][axis]
    if config["output_size"] is not None:
        wanted: int = config["output_size"][axis]
        if length not in (None, window_length(wanted, extent, stride, config["padding"])):
            raise ShapeError(
                f"output_size {wanted} is none that a window of {extent} with stride "
                f"{stride} makes of {length}"
            )
        return wanted
    extra = None if config["output_padding"] is None else config["output_padding"][axis]
    if extra is not None and extra >= stride:
        raise ShapeError(f"output_padding {extra} is not below the stride {stride}")
    beyond = extent if config["padding"] == "valid" else extent % 2  # of the last step's stride
    if extra is None:
        beyond = max(extent, stride) if config["padding"] == "valid" else stride
    elif config["padding"] == "same" and not 1 <= beyond + extra <= stride:
        raise ShapeError(
            f"output_padding {extra} does not fit a window of {extent} with stride {stride}"
        )
    return None if length is None else (length - 1) * stride + beyond + (extra or 0)


def _transposed_output(config: Config, shape: Shape | None) -> Shape | None:
    rank = len(config["kernel_size"])
    for axis in range(rank):
        transposed_length(config, None, axis)
    return resized(
        config,
        shape,
        rank,
        lambda length, i: transposed_length(config, length, i),
        config["filters"],
    )


_CAUSAL = choice("valid", "valid", "same", "causal")
_PADDING = choice("valid", "valid", "same")
_FILTERS: Mapping[str, Option] = {"filters": size()}
_MULTIPLIER: Mapping[str, Option] = {"depth_multiplier": size(1)}
# tf.keras writes ``groups`` for every convolution and uses it in the plain ones alone.
_ONE_GROUP: Mapping[str, Option] = {"groups": choice(1, 1)}


def _options(rank: int, padding: Option, *more: Mapping[str, Option]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "kernel_size": window(rank=rank),
        "strides": window(1, rank),
        "padding": padding,
        "data_format": DATA_FORMAT,
        "dilation_rate": window(1, rank),
        "activation": activation(),
        "use_bias": flag(True),
    }
    for part in more:
        options.update(part)
    return options


def _conv(rank: int) -> Schema:
    return Schema(
        _options(rank, _CAUSAL if rank == 1 else _PADDING, _FILTERS, {"groups": size(1)}),
        _conv_weights,
        conv_output,
    )


def _depthwise(rank: int) -> Schema:
    options = _options(rank, _PADDING, _MULTIPLIER, _ONE_GROUP)
    return Schema(options, _depthwise_weights, conv_output)


def _separable(rank: int) -> Schema:
    padding = _CAUSAL if rank == 1 else _PADDING
    return Schema(
        _options(rank, padding, _FILTERS, _MULTIPLIER, _ONE_GROUP),
        _separable_weights,
        conv_output,
    )


def _transposed(rank: int) -> Schema:
    return Schema(
        _options(
            rank,
            _PADDING,
            _FILTERS,
            _ONE_GROUP,
            {
                "output_padding": optional(window(None, rank, least=0)),
                "output_size": optional(window(None, rank)),  # of Keras 1, which says it
            },
        ),
        _transposed_weights,
        _transposed_output,
        refused=("output_padding that TensorFlow refuses",),
    )


# ---- ConvLSTM ------------------------------------------------------------------------------------


def _one_step(config: Config, shape: Shape | None) -> Shape | None:
    """Return the shape at one step: (B, T, ...) -> (B, ...)."""
    shape = known(shape, rank=len(config["kernel_size"]) + 3)
    return None if shape is None else (shape[0], *shape[2:])


def _conv_weights_conv_lstm(config: Config, shape: Shape | None) -> WeightShapes:
    step, filters = _one_step(config, shape), config["filters"]
    channels = None if step is None else step[channel_axis(config)]
    kernels: dict[str, Shape] = {
        "kernel": (*config["kernel_size"], channels, 4 * filters),
        "recurrent_kernel": (*config["kernel_size"], filters, 4 * filters),
    }
    return _with_bias(config, kernels, 4 * filters)


def _conv_output(config: Config, shape: Shape | None) -> Any:
    step = conv_output(config, _one_step(config, shape))
    if shape is None or step is None:
        return None
    return sequence_output(config, shape[1], step, [step] * 2)


def _conv_lstm(rank: int, ignored: tuple[str, ...] = ()) -> Schema:
    return Schema(
        {
            "filters": size(),
            "kernel_size": window(rank=rank),
            "strides": window(1, rank),
            "padding": choice("valid", "valid", "same"),
            "data_format": DATA_FORMAT,
            "dilation_rate": window(1, rank),
            "activation": activation("tanh"),
            "recurrent_activation": activation(REQUIRED),
            "use_bias": flag(True),
            "dropout": number(0.0, 0.0, 1.0),
            "recurrent_dropout": number(0.0, 0.0, 1.0),
            **LOOP_OPTIONS,
        },
        _conv_weights_conv_lstm,
        _conv_output,
        semantics=LOOP_SEMANTICS,
        ignored=ignored,
    )


LAYERS: Mapping[str, Schema] = {
    **for_ranks("Conv{}D", _conv),
    "DepthwiseConv1D": _depthwise(1),
    "DepthwiseConv2D": _depthwise(2),
    "SeparableConv1D": _separable(1),
    "SeparableConv2D": _separable(2),
    **for_ranks("Conv{}DTranspose", _transposed),
    "ConvLSTM1D": _conv_lstm(1),
    "ConvLSTM2D": _conv_lstm(2, ignored=("implementation",)),  # of Keras before 2.2
    "ConvLSTM3D": _conv_lstm(3),
}
