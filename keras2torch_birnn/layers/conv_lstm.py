"""ConvLSTM1D, 2D and 3D: an LSTM whose products are convolutions.

Equations: Keras 2.2.4 ``convolutional_recurrent.py``, Keras 3.15 ``layers/rnn/conv_lstm.py``.
B batch, T time, S the axes of space, C channels, F filters, K the window. Gates: i, f, c, o.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.errors import ArgumentValueError
from keras2torch_birnn.layers.convolution import channels_ahead, convolve
from keras2torch_birnn.layers.masking import loop_mask
from keras2torch_birnn.layers.registry import Converter
from keras2torch_birnn.rnn.activations import activation
from keras2torch_birnn.rnn.checks import check_states
from keras2torch_birnn.rnn.engines import check_no_kernel
from keras2torch_birnn.rnn.engines.exported import Shared
from keras2torch_birnn.rnn.engines.loop import loop_over
from keras2torch_birnn.rnn.layer import RnnCall, RnnResult, State
from keras2torch_birnn.rnn.masks import expand_dims_like, zero_past
from keras2torch_birnn.rnn.modules import (
    AnyRecurrent,
    Plan,
    plan_of,
    shown_options,
)
from keras2torch_birnn.rnn.parameters import to_parameter
from keras2torch_birnn.schema import CONV_LSTMS
from keras2torch_birnn.schema.activation import activation_label
from keras2torch_birnn.spec import LayerSpec


class ConvLSTM(AnyRecurrent, nn.Module):
    """One direction, called as Keras calls its ConvLSTM: (B, T, S, C) -> (B, T, S', F).

    ``weight_ih`` (4F, C, K), ``weight_hh`` (4F, F, K), ``bias`` (4F,). With ``channels_first`` the
    channels come before S, in the states as well.
    """

    def __init__(
        self,
        weight_ih: nn.Parameter,
        weight_hh: nn.Parameter,
        bias: nn.Parameter | None,
        config: Mapping[str, Any],
        plan: Plan,
    ) -> None:
        super().__init__()
        self.weight_ih, self.weight_hh, self.bias = weight_ih, weight_hh, bias
        self.plan = plan
        self.inner = {
            "stride": config["strides"],
            "dilation": config["dilation_rate"],
            "padding": config["padding"],
        }
        self.channels = -1 if config["data_format"] == "channels_last" else 1
        self.activation = activation(config["activation"])
        self.recurrent_activation = activation(config["recurrent_activation"])
        self.dropout: float = config["dropout"]
        self.recurrent_dropout: float = config["recurrent_dropout"]
        names = ("activation", "recurrent_activation")
        self.named = {name: activation_label(config[name]) for name in names}

    def run_sequence(self, call: RnnCall) -> RnnResult:
        """Run the steps in a loop; one direction, so there is nothing to merge.

        Raises:
            ArgumentValueError: there are no steps, or the states do not fit.
        """
        x, lengths, initial = call.x, call.lengths, call.initial_state
        if x.shape[1] == 0:
            raise ArgumentValueError("an input of no steps is not supported")
        products = self._input_product(x)
        zeros = torch.zeros_like(products[:, 0].chunk(4, dim=self.channels)[0])
        check_states(initial or (), (zeros.shape,) * 2)
        (begin,) = initial or ((zeros, zeros),)
        shared = Shared(self.weight_hh, masks=self._masks(begin[0], self.recurrent_dropout))
        out, state = loop_over(self._step, products, lengths, begin, shared)
        return (zero_past(out, lengths),), (state,)

    def _step(self, product: Tensor, state: State, shared: Shared) -> State:
        """Run a step: c' = f c + i act(.); h' = o act(c'); h is convolved with "same" padding."""
        h, c = state
        ones = (1,) * (h.dim() - 2)
        window = {"stride": ones, "dilation": ones, "padding": "same"}
        recurrent = self._convolved(h, shared.weight, shared.masks, window)
        i, f, g, o = (product + recurrent).chunk(4, dim=self.channels)
        gate, act = self.recurrent_activation, self.activation
        c = gate(f) * c + gate(i) * act(g)
        return gate(o) * act(c), c

    def _input_product(self, x: Tensor) -> Tensor:
        """Convolve all steps at once: (B, T, S, C) -> (B, T, S', 4F), bias included."""
        drops = self._masks(x[:, 0], self.dropout)
        masks = [mask[:, None].expand_as(x).flatten(0, 1) for mask in drops]
        y = self._convolved(x.flatten(0, 1), self.weight_ih, masks, self.inner)
        if self.bias is not None:
            y = y + (self.bias if self.channels == -1 else expand_dims_like(self.bias, y[0]))
        return y.reshape(*x.shape[:2], *y.shape[1:])

    def _convolved(
        self, x: Tensor, weight: Tensor, masks: Sequence[Tensor], window: Mapping[str, Any]
    ) -> Tensor:
        """Convolve (N, S, C) -> (N, S', 4F). ``masks``: a dropout mask of the input per gate."""
        copies = [x * mask for mask in masks] or [x]
        parts = []
        for copy, rows in zip(copies, weight.chunk(len(copies)), strict=True):
            ahead = copy.movedim(copy.dim() - 1, 1) if self.channels == -1 else copy
            y = convolve(ahead, rows, **window)
            parts.append(y.movedim(1, y.dim() - 1) if self.channels == -1 else y)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.channels)

    def _masks(self, x: Tensor, rate: float) -> tuple[Tensor, ...]:
        """Draw a dropout mask for every gate, the same at all steps; none outside training."""
        if not (self.training and 0.0 < rate < 1.0):
            return ()
        return tuple(functional.dropout(torch.ones_like(x), rate) for _ in range(4))

    def extra_repr(self) -> str:
        """Show channels, window, and Keras' options."""
        filters, channels, *kernel = self.weight_ih.shape
        parts = [f"{channels}, {filters // 4}, kernel_size={tuple(kernel)}"]
        parts += [f"{key}={value}" for key, value in {**self.inner, **self.named}.items()]
        return ", ".join([*parts, *shown_options(self.plan)])


def one_direction(layer: LayerSpec, plan: Plan) -> nn.Module:
    """Build one direction: ``kernel`` (K, C, 4F) -> ``weight_ih`` (4F, C, K), same order of gates.

    Raises:
        UsageError: K2T_ENGINE asks for a kernel.
    """
    check_no_kernel(layer, "a convolutional LSTM")
    weights = layer.weights
    return ConvLSTM(
        to_parameter(channels_ahead(weights["kernel"])),
        to_parameter(channels_ahead(weights["recurrent_kernel"])),
        to_parameter(weights["bias"]) if layer.config["use_bias"] else None,
        layer.config,
        plan,
    )


def conv_lstm(layer: LayerSpec) -> nn.Module:
    """Build a ConvLSTM layer."""
    return one_direction(layer, plan_of((layer,), merge_mode=None))


CONVERTERS: Mapping[str, Converter] = dict.fromkeys(CONV_LSTMS, Converter(conv_lstm, loop_mask))
