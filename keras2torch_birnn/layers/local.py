"""LocallyConnected1D and 2D: a kernel of its own for every position."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.functional.parameters import to_parameter
from keras2torch_birnn.layers.activation import activation_layer
from keras2torch_birnn.layers.convolution import pad
from keras2torch_birnn.layers.registry import NONE, Converter, Described, by_axes
from keras2torch_birnn.schema.local import Places, places, windows_of
from keras2torch_birnn.spec import Array, LayerSpec, Structure


class LocallyConnected(Described):
    """Windows, each multiplied by its own ``weight[place]`` (C k, filters), and an activation.

    For every axis: the size of a window, the stride, the count of windows, and how far they reach
    out of the steps in front and behind, where they meet zeros. ``bias`` is (..., filters).
    """

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        sizes: tuple[int, ...],
        strides: tuple[int, ...],
        counts: tuple[int, ...],
        around: Sequence[tuple[int, int]],
        *,
        activation: Callable[[Tensor], Tensor],
        channels_last: bool,
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.activation, self.channels_last = activation, channels_last
        self.sizes, self.strides, self.counts, self.around = sizes, strides, counts, around

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) -> (B, T', filters), or with C before T; two axes likewise."""
        x = pad(x.movedim(-1, 1) if self.channels_last else x, self.around)
        sizes, strides = self.sizes, self.strides
        if len(sizes) == 1:  # a plane of one row
            x, sizes, strides = x.unsqueeze(2), (1, *sizes), (1, *strides)
        windows = functional.unfold(x, sizes, stride=strides)  # (B, C k, places)
        y = torch.einsum("bkp,pkf->bpf", windows, self.weight)
        y = y.reshape(y.shape[0], *self.counts, y.shape[2])
        y = self.activation(y if self.bias is None else y + self.bias)
        return y if self.channels_last else y.movedim(-1, 1)


def _steps(axes: Sequence[Places]) -> tuple[Array, Array]:
    """Return (windows, k): the step at every position of every window, and whether it exists."""
    step: Array = np.zeros((1, 1), dtype=np.int64)
    exists: Array = np.ones((1, 1), dtype=bool)
    for axis in axes:
        own = np.arange(axis.count)[:, None] * axis.stride - axis.front + np.arange(axis.size)
        inside = (own >= 0) & (own < axis.length)
        pairs = (len(step) * axis.count, step.shape[1] * axis.size)
        step = (step[:, None, :, None] * axis.length + own[None, :, None, :]).reshape(pairs)
        exists = (exists[:, None, :, None] & inside[None, :, None, :]).reshape(pairs)
    return np.where(exists, step, 0), exists


def _by_window(layer: LayerSpec, axes: Sequence[Places], channels: int) -> Array:
    """Turn ``kernel`` of implementation 1, 2, 3 -> (places, k, C, filters), zeros elsewhere."""
    kernel, config = np.asarray(layer.weights["kernel"]), layer.config
    last, filters = config["data_format"] == "channels_last", config["filters"]
    count, inner = math.prod(a.count for a in axes), math.prod(a.size for a in axes)
    if config["implementation"] == 1:
        if last:
            return kernel.reshape(count, inner, channels, filters)
        return kernel.reshape(count, channels, inner, filters).swapaxes(1, 2)
    step, exists = _steps(axes)
    if config["implementation"] == 2:
        place, length = np.arange(count)[:, None], math.prod(a.length for a in axes)
        if last:
            found = kernel.reshape(length, channels, count, filters)[step, :, place, :]
        else:
            found = kernel.reshape(channels, length, filters, count)[:, step, :, place]
        return np.where(exists[:, :, None, None], found, 0)
    # The entries of a sparse matrix in the order of its rows (outputs), then columns (inputs).
    if last:
        wide = np.zeros((count, filters, inner, channels), dtype=kernel.dtype)
        wide[np.broadcast_to(exists[:, None, :, None], wide.shape)] = kernel
        return wide.transpose(0, 2, 3, 1)
    wide = np.zeros((filters, count, channels, inner), dtype=kernel.dtype)
    wide[np.broadcast_to(exists[None, :, None, :], wide.shape)] = kernel
    return wide.transpose(1, 3, 2, 0)


def locally_connected(layer: LayerSpec) -> nn.Module:
    """Build a LocallyConnected: ``weight`` (places, C k, filters), ``bias`` (..., filters).

    With channels_first Keras reshapes its bias (..., filters) to (filters, ...), whose numbers come
    in other positions (``backend.bias_add``).
    """
    config = layer.config
    shape: Structure = layer.input_shape
    axes = places(config, shape)
    last = config["data_format"] == "channels_last"
    channels = shape[-1] if last else shape[1]
    by_window = _by_window(layer, axes, channels).swapaxes(1, 2)
    weight = to_parameter(by_window.reshape(len(by_window), -1, config["filters"]))
    bias = None
    if config["use_bias"]:
        found = np.asarray(layer.weights["bias"])
        if not last:
            found = np.moveaxis(found.reshape(-1, *found.shape[:-1]), 0, -1)
        bias = to_parameter(found)
    options = {"activation": activation_layer(layer), "channels_last": last}
    return LocallyConnected(weight, bias, *windows_of(axes), **options)


CONVERTERS = by_axes("LocallyConnected{}D", Converter(locally_connected, NONE), (1, 2))
