"""ConvLSTM1D, 2D and 3D: an LSTM of images, whose products are convolutions.

Letters: B batch, S the axes of space, C channels, F filters. States are images (B, S, F).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from keras2torch_birnn.reference.cells import State, Step, lstm_step
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.reference.convolution import convolution
from keras2torch_birnn.reference.recurrent import loop
from keras2torch_birnn.spec import Array, LayerSpec, Structure


def conv_lstm(layer: LayerSpec, inputs: Array, mask: Structure, context: Context) -> Result:
    """Compute a ConvLSTM: the loop of ``recurrent`` over its step."""
    zeros = partial(_zero_state, layer, context)
    return loop(layer, inputs, mask, context, step_of(layer, context), zeros)


def step_of(layer: LayerSpec, context: Context) -> Step:
    """Compute ``ConvLSTM2DCell.call`` (Keras 2.2.4, 2.15), ``ConvLSTMCell.call`` (3.15).

    An LSTM of images.

    The input is convolved with the layer's window, the state with a plain "same" one.
    """
    config, given = layer.config, _input_convolution(layer)
    axis = _channel_axis(layer)
    ones = (1,) * len(config["kernel_size"])
    recurrent = replace(
        layer,
        config={
            **given.config,
            "strides": ones,
            "dilation_rate": ones,
            "padding": "same",
            "use_bias": False,
        },
        weights={"kernel": layer.weights["recurrent_kernel"]},
    )

    def step(x: Array, state: State) -> tuple[Array, State]:
        h, c = state
        z = convolution(given, x, None, context)[0] + convolution(recurrent, h, None, context)[0]
        return lstm_step(layer, np.split(z, 4, axis=axis), c)

    return step


def _input_convolution(layer: LayerSpec) -> LayerSpec:
    """Return the convolution of the input as a layer of its own."""
    return replace(layer, config={**layer.config, "groups": 1, "activation": "linear"})


def _channel_axis(layer: LayerSpec) -> int:
    return -1 if layer.config["data_format"] == "channels_last" else 1


def _zero_state(layer: LayerSpec, context: Context, x: Array) -> State:
    """Return h and c before the first step, for inputs (B, S, C) of one step."""
    gates = convolution(_input_convolution(layer), x, None, context)[0]
    shape = np.split(gates, 4, axis=_channel_axis(layer))[0].shape
    return (np.zeros(shape),) * 2


EQUATIONS: Mapping[str, Equation] = dict.fromkeys(
    ("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), conv_lstm
)
