"""ConvLSTM1D, 2D and 3D."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.schema.convolution import conv_output
from keras2torch_birnn.schema.options import (
    REQUIRED,
    activation,
    choice,
    flag,
    number,
    size,
    window,
)
from keras2torch_birnn.schema.recurrent import LOOP_OPTIONS, LOOP_SEMANTICS, sequence_output
from keras2torch_birnn.schema.row import Config, Schema, WeightShapes, known
from keras2torch_birnn.schema.windows import DATA_FORMAT, channel_axis
from keras2torch_birnn.spec import Shape


def _one_step(config: Config, shape: Shape | None) -> Shape | None:
    """Return the shape at one step: (B, T, ...) -> (B, ...)."""
    shape = known(shape, rank=len(config["kernel_size"]) + 3)
    return None if shape is None else (shape[0], *shape[2:])


def _conv_weights(config: Config, shape: Shape | None) -> WeightShapes:
    step, filters = _one_step(config, shape), config["filters"]
    channels = None if step is None else step[channel_axis(config)]
    kernels: dict[str, Shape] = {
        "kernel": (*config["kernel_size"], channels, 4 * filters),
        "recurrent_kernel": (*config["kernel_size"], filters, 4 * filters),
    }
    return {**kernels, "bias": (4 * filters,)} if config["use_bias"] else kernels


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
        _conv_weights,
        _conv_output,
        semantics=LOOP_SEMANTICS,
        ignored=ignored,
    )


LAYERS: Mapping[str, Schema] = {
    "ConvLSTM1D": _conv_lstm(1),
    "ConvLSTM2D": _conv_lstm(2, ignored=("implementation",)),  # of Keras before 2.2
    "ConvLSTM3D": _conv_lstm(3),
}
