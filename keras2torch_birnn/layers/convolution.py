"""Convolutions and ConvLSTM. Keras holds (B, T, C), torch (B, C, T).

Sizes are tuples, one per axis; an extent is how far a dilated window reaches. B batch, T time, S
the axes of space, C channels, F filters, K the window. Equations of ConvLSTM, gates i, f, c, o:
Keras 2.2.4 ``convolutional_recurrent.py``, Keras 3.15 ``layers/rnn/conv_lstm.py``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.errors import ArgumentValueError
from keras2torch_birnn.layers.core import loop_mask
from keras2torch_birnn.layers.functional import same_padding
from keras2torch_birnn.layers.registry import NONE, Converter, by_axes
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
from keras2torch_birnn.rnn.tensor_memory import is_exporting_by_torch
from keras2torch_birnn.schema.convolution import transposed_length
from keras2torch_birnn.schema.core import activation_label
from keras2torch_birnn.spec import Array, LayerSpec

# ---- convolutions --------------------------------------------------------------------------------

_CONVOLVE: Mapping[int, Callable[..., Tensor]] = {
    1: torch.conv1d,
    2: torch.conv2d,
    3: torch.conv3d,
}
_TRANSPOSED: Mapping[int, Callable[..., Tensor]] = {
    1: torch.conv_transpose1d,
    2: torch.conv_transpose2d,
    3: torch.conv_transpose3d,
}


def is_padded(around: Sequence[tuple[int, int]]) -> bool:
    """Tell whether anything is padded, or may be at another length, while a graph is recorded."""
    open_size = (torch.SymInt, Tensor)
    return any(isinstance(size, open_size) or bool(size) for pair in around for size in pair)


def pad(x: Tensor, around: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad the last axes of x, (before, after) each; negative numbers crop."""
    if not is_padded(around):
        return x
    return functional.pad(x, [size for pair in reversed(around) for size in pair], value=value)


def extents(kernel_size: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Compute how far a window reaches on every axis."""
    return [(size - 1) * d + 1 for size, d in zip(kernel_size, dilation, strict=True)]


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: str,
    groups: int = 1,
) -> Tensor:
    """Convolve (B, C, T) -> (B, filters, T') as Keras; ``weight`` (filters, C / groups, k)."""
    reach = extents(weight.shape[2:], dilation)
    around = [(0, 0)] * len(reach)
    if padding == "causal":
        around = [(extent - 1, 0) for extent in reach]
    elif padding == "same":
        around = [same_padding(*size) for size in zip(x.shape[2:], reach, stride, strict=True)]
    if not x.is_cpu or is_traced():
        more = {"stride": stride, "dilation": dilation, "groups": groups}
        return _CONVOLVE[len(reach)](pad(x, around), weight, bias, **more)
    return _convolve_now(x, weight, bias, around, stride, dilation, groups)


def is_traced() -> bool:
    """Return whether a graph is made of the call, for any sizes and strides."""
    return torch.compiler.is_compiling() or is_exporting_by_torch()


def _convolve_now(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    around: Sequence[tuple[int, int]],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Convolve in the order in which x lies in memory.

    For one axis torch would copy x into another order, and the result would be in that; for two,
    it has kernels for both. Equal padding at both ends takes no copy.
    """
    one_axis = len(around) == 1
    if one_axis:
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        around, stride, dilation = [(0, 0), *around], (1, *stride), (1, *dilation)
    padding = tuple(before if before == after else 0 for before, after in around)
    rest = [(0, 0) if before == after else (before, after) for before, after in around]
    y = _CONVOLVE[len(around)](pad(x, rest), weight, bias, stride, padding, dilation, groups)
    return y.squeeze(2) if one_axis else y


class Convolution(nn.Module):
    """A convolution with Keras' paddings, data format and activation."""

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, config: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.kernel_size: tuple[int, ...] = config["kernel_size"]
        self.stride: tuple[int, ...] = config["strides"]
        self.dilation: tuple[int, ...] = config["dilation_rate"]
        self.groups: int = config["groups"]
        self.padding: str = config["padding"]
        self.channels_last = config["data_format"] == "channels_last"
        self.activation = activation(config["activation"])
        self.shown = activation_label(config["activation"])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) -> (B, T', filters), or with C before T; two axes likewise."""
        x = x.movedim(-1, 1) if self.channels_last else x
        y = self.convolve(x)
        return self.activation(y.movedim(1, -1) if self.channels_last else y)

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve (B, C, T) -> (B, filters, T')."""
        return convolve(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            dilation=self.dilation,
            padding=self.padding,
            groups=self.groups,
        )

    def extra_repr(self) -> str:
        """Show channels, window, and options that are not the default."""
        filters, inner = self.weight.shape[:2]
        shown = [f"{inner * self.groups}, {filters}, kernel_size={self.kernel_size}"]
        ones = (1,) * len(self.kernel_size)
        for name, value, usual in (
            ("stride", self.stride, ones),
            ("dilation", self.dilation, ones),
            ("groups", self.groups, 1),
            ("bias", self.bias is not None, True),
            ("channels_last", self.channels_last, True),
        ):
            if value != usual:
                shown.append(f"{name}={value}")
        return ", ".join([*shown, f"padding={self.padding}, activation={self.shown}"])


class TransposedConvolution(Convolution):
    """The transpose of a convolution, cut to Keras' length.

    The whole of it has length (T - 1) stride + extent. What a "same" convolution would have padded
    in front goes away in front; behind, as much goes away or is added as the length asks for.
    """

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, config: Mapping[str, Any]
    ) -> None:
        super().__init__(weight, bias, config)
        self.sizes = {
            key: config[key]
            for key in (
                "kernel_size strides dilation_rate padding output_padding output_size".split()
            )
        }

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve (B, C, T) -> (B, filters, T')."""
        y = _TRANSPOSED[len(self.kernel_size)](
            x, self.weight, None, stride=self.stride, dilation=self.dilation
        )
        around = []
        reach = extents(self.kernel_size, self.dilation)
        for axis, (extent, stride) in enumerate(zip(reach, self.stride, strict=True)):
            length = transposed_length(self.sizes, x.shape[2 + axis], axis) or 0
            front = same_padding(length, extent, stride)[0] if self.padding == "same" else 0
            around.append((-front, length + front - y.shape[2 + axis]))
        y = pad(y, around)
        return y if self.bias is None else y + self.bias.view(-1, *[1] * len(around))

    def extra_repr(self) -> str:
        """Show the options of a convolution, with the sizes of this direction."""
        inner, filters = self.weight.shape[:2]
        _, _, rest = super().extra_repr().split(", ", 2)
        said = [(key, self.sizes[key]) for key in ("output_padding", "output_size")]
        shown = [f"{key}={value}" for key, value in said if value is not None]
        return ", ".join([f"{inner}, {filters}, {rest}", *shown])


def channels_ahead(kernel: Array) -> Array:
    """Transpose Keras' kernel (k, ..., in, out) -> (out, in, k, ...)."""
    return kernel.transpose(-1, -2, *range(kernel.ndim - 2))


def _bias(layer: LayerSpec) -> nn.Parameter | None:
    return to_parameter(layer.weights["bias"]) if layer.config["use_bias"] else None


def convolution(layer: LayerSpec) -> nn.Module:
    """Build a convolution: ``kernel`` (k, in/groups, out) -> ``weight`` (out, in/groups, k)."""
    weight = to_parameter(channels_ahead(layer.weights["kernel"]))
    return Convolution(weight, _bias(layer), layer.config)


def _depthwise(layer: LayerSpec, bias: nn.Parameter | None, label: Any) -> Convolution:
    """Build a depthwise convolution: kernel (k, in, m) -> weight (in m, 1, k), in groups of m."""
    kernel = layer.weights["depthwise_kernel"]
    *size, channels, multiplier = kernel.shape
    weight = kernel.transpose(-2, -1, *range(len(size))).reshape(channels * multiplier, 1, *size)
    config = {**layer.config, "groups": channels, "activation": label}
    return Convolution(to_parameter(weight), bias, config)


def depthwise(layer: LayerSpec) -> nn.Module:
    """Build a depthwise convolution; output channel c m + j is number j of input channel c."""
    return _depthwise(layer, _bias(layer), layer.config["activation"])


def separable(layer: LayerSpec) -> nn.Module:
    """Build a separable convolution: depthwise without bias, then a window of one point."""
    ones = (1,) * len(layer.config["kernel_size"])
    point = {
        **layer.config,
        "kernel_size": ones,
        "strides": ones,
        "dilation_rate": ones,
        "padding": "valid",
    }
    weight = to_parameter(channels_ahead(layer.weights["pointwise_kernel"]))
    return nn.Sequential(
        OrderedDict(
            depthwise=_depthwise(layer, None, "linear"),
            pointwise=Convolution(weight, _bias(layer), point),
        )
    )


def transposed(layer: LayerSpec) -> nn.Module:
    """Build a transposed convolution: ``kernel`` (k, out, in) -> ``weight`` (in, out, k)."""
    weight = to_parameter(channels_ahead(layer.weights["kernel"]))
    return TransposedConvolution(weight, _bias(layer), layer.config)


# ---- ConvLSTM ------------------------------------------------------------------------------------


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


CONVERTERS: Mapping[str, Converter] = {
    **by_axes("Conv{}D", Converter(convolution, NONE)),
    **by_axes("DepthwiseConv{}D", Converter(depthwise, NONE), (1, 2)),
    **by_axes("SeparableConv{}D", Converter(separable, NONE), (1, 2)),
    **by_axes("Conv{}DTranspose", Converter(transposed, NONE)),
    **by_axes("ConvLSTM{}D", Converter(conv_lstm, loop_mask)),
}
