"""Recurrent layers, convolutional ones too, and Bidirectional."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from keras2torch_birnn.schema.convolution import conv_output
from keras2torch_birnn.schema.options import (
    REQUIRED,
    Option,
    activation,
    choice,
    flag,
    number,
    size,
    window,
)
from keras2torch_birnn.schema.row import Config, Schema, ShapeError, WeightShapes, known, last
from keras2torch_birnn.schema.windows import DATA_FORMAT, channel_axis
from keras2torch_birnn.spec import MaskedOutput, Shape

CELL_GATES: Mapping[str, int] = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}
CELL_STATES: Mapping[str, int] = {"LSTM": 2, "GRU": 1, "SimpleRNN": 1}
CONV_LSTMS: Mapping[str, int] = {"ConvLSTM1D": 1, "ConvLSTM2D": 2, "ConvLSTM3D": 3}
# What can be half of a Bidirectional.
RECURRENT: tuple[str, ...] = (*CELL_GATES, "RNN", *CONV_LSTMS)

CELL_OPTIONS: Mapping[str, Option] = {
    "units": size(),
    "activation": activation("tanh"),
    "use_bias": flag(True),
    "dropout": number(0.0, 0.0, 1.0),
    "recurrent_dropout": number(0.0, 0.0, 1.0),
    "implementation": choice(2, 0, 1, 2),
}
GATE_OPTIONS: Mapping[str, Option] = {"recurrent_activation": activation(REQUIRED)}
GRU_OPTIONS: Mapping[str, Option] = {**GATE_OPTIONS, "reset_after": flag()}
LOOP_OPTIONS: Mapping[str, Option] = {
    "return_sequences": flag(False),
    "return_state": flag(False),
    "go_backwards": flag(False),
    "stateful": flag(False),
    "unroll": flag(False),
    "time_major": choice(False, False),
}
LOOP_SEMANTICS: Mapping[str, Option] = {"masked_output": choice(REQUIRED, *get_args(MaskedOutput))}
RNN_OPTIONS: Mapping[str, Option] = {**CELL_OPTIONS, **LOOP_OPTIONS}


def cell_weights(gates: int, rank: int) -> Callable[[Config, Shape | None], WeightShapes]:
    """Make the weights' rule of a layer (rank 3), or of its cell that sees one step (rank 2)."""

    def weights(config: Config, shape: Shape | None) -> WeightShapes:
        units, width = config["units"], gates * config["units"]
        known(shape, rank=rank)
        out: dict[str, Shape] = {
            "kernel": (last(shape), width),
            "recurrent_kernel": (units, width),
        }
        if config["use_bias"]:
            out["bias"] = (2, width) if config.get("reset_after") else (width,)
        return out

    return weights


def sequence_output(config: Config, steps: int | None, step: Shape, states: Sequence[Shape]) -> Any:
    """Compute the output shape of a loop over time whose cell gives ``step`` at each step.

    With ``return_state`` a tuple (output, *states).
    """
    out = (step[0], steps, *step[1:]) if config["return_sequences"] else step
    return (out, *states) if config["return_state"] else out


def _rnn_output(config: Config, shape: Shape | None, states: int) -> Any:
    batch, time = shape[:2] if shape else (None, None)
    state: Shape = (batch, config["units"])
    return sequence_output(config, time, state, [state] * states)


def _rnn(cell: str, options: Mapping[str, Option], **more: Any) -> Schema:
    return Schema(
        options=options,
        weights=cell_weights(CELL_GATES[cell], rank=3),
        output=lambda config, shape: _rnn_output(config, known(shape, rank=3), CELL_STATES[cell]),
        semantics=LOOP_SEMANTICS,
        refused=("time_major=True", "constants"),
        **more,
    )


def merged_output(merge_mode: str | None, forward: Any, backward: Any) -> Any:
    """Compute the output shape of a Bidirectional from its halves' (with states, if any)."""
    with_state = bool(forward) and isinstance(forward[0], tuple)
    heads: list[Any] = []
    states: list[Any] = []
    for half in (forward, backward):
        heads.append(half[0] if with_state else half)
        states.extend(half[1:] if with_state else ())
    out: tuple[Any, ...]
    if merge_mode is None:
        out = tuple(heads)
    elif merge_mode == "concat":
        out = ((*heads[0][:-1], heads[0][-1] + heads[1][-1]),)
    elif heads[0] != heads[1]:
        raise ShapeError(
            f"merge_mode {merge_mode!r} needs halves of equal size, found {list(heads[0])} and "
            f"{list(heads[1])}"
        )
    else:
        out = (heads[0],)
    out = (*out, *states)
    return out[0] if len(out) == 1 else out


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
    "LSTM": _rnn("LSTM", {**RNN_OPTIONS, **GATE_OPTIONS}, aliases=("CuDNNLSTM",)),
    "GRU": _rnn("GRU", {**RNN_OPTIONS, **GRU_OPTIONS}, aliases=("CuDNNGRU",)),
    "SimpleRNN": _rnn("SimpleRNN", RNN_OPTIONS),
    "Bidirectional": Schema(
        {"merge_mode": choice("concat", "concat", "sum", "mul", "ave", None)},
        parts=("forward_layer", "backward_layer"),
        refused=("layers that are not recurrent",),
    ),
    "RNN": Schema(
        LOOP_OPTIONS,
        semantics=LOOP_SEMANTICS,
        parts=("cell",),
        refused=("cells other than LSTMCell, GRUCell, SimpleRNNCell and StackedRNNCells of these",),
    ),
    "ConvLSTM1D": _conv_lstm(1),
    "ConvLSTM2D": _conv_lstm(2, ignored=("implementation",)),  # of Keras before 2.2
    "ConvLSTM3D": _conv_lstm(3),
}
