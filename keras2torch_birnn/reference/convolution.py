"""Convolutions and ConvLSTM over one axis, two or three, and the windows that they share.

Letters: B batch, T time, S the axes of space, C channels, K kernel size, G groups, F filters.
``channels_first`` moves the channels before and after. States of a ConvLSTM are images (B, S, F).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.cells import State, Step, lstm_step
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.reference.recurrent import loop
from keras2torch_birnn.schema.row import for_ranks
from keras2torch_birnn.spec import Array, LayerSpec, Structure

# ---- windows -------------------------------------------------------------------------------------


def channels_last(layer: LayerSpec, x: Array) -> Array:
    """Return (B, T, C) from the layer's format."""
    return x if layer.config["data_format"] == "channels_last" else np.moveaxis(x, 1, -1)


def as_given(layer: LayerSpec, y: Array) -> Array:
    """Return (B, T, C) in the layer's format."""
    return y if layer.config["data_format"] == "channels_last" else np.moveaxis(y, -1, 1)


def window_starts(steps: int, extent: int, stride: int, padding: str) -> list[int]:
    """Return where each window begins; before 0 it reaches into the padding.

    ``conv_output_length`` (Keras 2.15) and TensorFlow's SAME: the odd step is padded at the end.
    """
    if padding == "valid":
        starts = list(range(0, steps - extent + 1, stride))
    else:
        count = -(-steps // stride)
        lacking = max((count - 1) * stride + extent - steps, 0)
        first = extent - 1 if padding == "causal" else lacking // 2
        starts = [index * stride - first for index in range(count)]
    if not starts:
        raise ValueError(f"a window of {extent} does not fit the {steps} steps")
    return starts


def reduce_windows(
    reduce: Callable[..., Array], x: Array, windows: Sequence[Sequence[slice]]
) -> Array:
    """Reduce (B, ..., C) in every window; ``windows``: those along each axis."""
    y = np.zeros((len(x), *map(len, windows), x.shape[-1]), dtype=x.dtype)
    axes = tuple(range(1, x.ndim - 1))
    for corner in np.ndindex(y.shape[1:-1]):
        part = (slice(None), *(axis[i] for axis, i in zip(windows, corner, strict=True)))
        target: tuple[slice | int, ...] = (slice(None), *corner)
        y[target] = reduce(x[part], axis=axes)
    return y


def pool(
    reduce: Callable[..., Array],
    x: Array,
    sizes: Sequence[int],
    strides: Sequence[int],
    padding: str,
) -> Array:
    """Reduce the real steps of each window of (B, ..., C)."""
    windows = [
        [slice(max(at, 0), at + size) for at in window_starts(steps, size, stride, padding)]
        for steps, size, stride in zip(x.shape[1:-1], sizes, strides, strict=True)
    ]
    return reduce_windows(reduce, x, windows)


# ---- convolutions --------------------------------------------------------------------------------


def _extents(layer: LayerSpec) -> list[int]:
    sizes = zip(layer.config["kernel_size"], layer.config["dilation_rate"], strict=True)
    return [(size - 1) * dilation + 1 for size, dilation in sizes]


def _places(layer: LayerSpec) -> Iterator[tuple[int, ...]]:
    """Yield all positions k of a window."""
    return itertools.product(*(range(int(size)) for size in layer.config["kernel_size"]))


def _views(layer: LayerSpec, x: Array) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yield (k, what every window has at its place k): x[t stride + k dilation] as (B, *T', C)."""
    config, extents = layer.config, _extents(layer)
    starts = [
        window_starts(steps, extent, stride, config["padding"])
        for steps, extent, stride in zip(x.shape[1:-1], extents, config["strides"], strict=True)
    ]
    margin = [(e, e) for e in extents]  # more than any window needs
    padded = np.pad(x, [(0, 0), *margin, (0, 0)])
    for k in _places(layer):
        view = padded
        for axis, i in enumerate(k):
            offset = extents[axis] + i * config["dilation_rate"][axis]
            view = view.take([start + offset for start in starts[axis]], axis=1 + axis)
        yield k, view


def _finish(layer: LayerSpec, y: Array, context: Context) -> Result:
    """Apply bias, activation and format; drop the mask."""
    if layer.config["use_bias"]:
        y = y + context.weight(layer, "bias")
    return activate(layer.config["activation"], as_given(layer, y)), None


def convolution(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Conv1D.call``, ``Conv2D.call``: sum over k of x[t stride + k dilation] W[k].

    W is (*K, C / G, filters): group g of the filters sees group g of the channels.
    """
    x = channels_last(layer, context.number(x))
    kernel, groups = context.weight(layer, "kernel"), layer.config["groups"]
    y: Array | float = 0.0
    for k, view in _views(layer, x):
        parts = zip(
            np.split(view, groups, axis=-1), np.split(kernel[k], groups, axis=-1), strict=True
        )
        y = y + np.concatenate([v @ w for v, w in parts], axis=-1)
    return _finish(layer, np.asarray(y), context)


def _each_channel(layer: LayerSpec, x: Array, context: Context) -> Array:
    """Convolve channel c with its own kernels W[..., c, :]; output channels in order (c, j)."""
    kernel = context.weight(layer, "depthwise_kernel")  # (*K, C, multiplier)
    y = sum(view[..., np.newaxis] * kernel[k] for k, view in _views(layer, x))
    products = np.asarray(y)
    return products.reshape(*products.shape[:-2], -1)


def depthwise(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``DepthwiseConv1D.call``, ``DepthwiseConv2D.call``."""
    x = channels_last(layer, context.number(x))
    return _finish(layer, _each_channel(layer, x, context), context)


def separable(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``SeparableConv1D.call``, ``SeparableConv2D.call``.

    Depthwise, then a matrix per point.
    """
    x = channels_last(layer, context.number(x))
    matrix = context.weight(layer, "pointwise_kernel").reshape(-1, layer.config["filters"])
    return _finish(layer, _each_channel(layer, x, context) @ matrix, context)


def transposed(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Conv1DTranspose.call``, ``Conv2DTranspose.call``.

    TensorFlow's gradient of a convolution.

    y[first + s stride + k dilation] += x[s] W[k]^T, where a convolution of y would have begun its
    window number s at ``first + s stride``. W is (*K, filters, C). What falls outside y is lost.
    """
    config, extents = layer.config, _extents(layer)
    x = channels_last(layer, context.number(x))
    kernel = context.weight(layer, "kernel")
    sizes = list(zip(x.shape[1:-1], extents, config["strides"], strict=True))
    lengths = [_transposed_length(layer, size[0], axis) for axis, size in enumerate(sizes)]
    room = [length + steps * s + e for length, (steps, e, s) in zip(lengths, sizes, strict=True)]
    wide = np.zeros((len(x), *room, config["filters"]), dtype=x.dtype)
    for k in _places(layer):
        place = tuple(
            slice(i * dilation, i * dilation + steps * stride, stride)
            for i, dilation, (steps, _, stride) in zip(
                k, config["dilation_rate"], sizes, strict=True
            )
        )
        target = (slice(None), *place)
        wide[target] += x @ kernel[k].T
    cuts = []
    for length, (steps, extent, stride) in zip(lengths, sizes, strict=True):
        lacking = max((steps - 1) * stride + extent - length, 0)
        before = lacking // 2 if config["padding"] == "same" else 0
        cuts.append(slice(before, before + length))
    kept = (slice(None), *cuts)
    return _finish(layer, wide[kept], context)


def _transposed_length(layer: LayerSpec, steps: int, axis: int) -> int:
    """Compute ``deconv_output_length`` (Keras 2.15, ``utils/conv_utils.py``).

    ``Deconvolution2D`` of Keras 1 hands the size to TensorFlow instead.
    """
    if layer.config["output_size"] is not None:
        return int(layer.config["output_size"][axis])
    stride, extent = int(layer.config["strides"][axis]), _extents(layer)[axis]
    same = layer.config["padding"] == "same"
    if layer.config["output_padding"] is None:
        return steps * stride if same else steps * stride + max(extent - stride, 0)
    pad = extent // 2 if same else 0
    return (steps - 1) * stride + extent - 2 * pad + int(layer.config["output_padding"][axis])


# ---- ConvLSTM ------------------------------------------------------------------------------------


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


EQUATIONS: Mapping[str, Equation] = {
    **for_ranks("Conv{}D", lambda _: convolution),
    "DepthwiseConv1D": depthwise,
    "DepthwiseConv2D": depthwise,
    "SeparableConv1D": separable,
    "SeparableConv2D": separable,
    **for_ranks("Conv{}DTranspose", lambda _: transposed),
    **for_ranks("ConvLSTM{}D", lambda _: conv_lstm),
}
