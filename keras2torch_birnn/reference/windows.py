"""Layers that look at a window of time steps or at all of them: convolution and pooling.

Letters: B batch, T time, C channels, K kernel size, G groups. Everything is computed as (B, T, C);
``channels_first`` swaps the two last axes before and after.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.context import Context, Equation
from keras2torch_birnn.spec import Array, LayerSpec, Structure

Result = tuple[Structure, Structure]


def _channels_last(layer: LayerSpec, x: Array) -> Array:
    """(B, T, C) from the layer's format, and back."""
    return x if layer.config["data_format"] == "channels_last" else x.swapaxes(1, 2)


def _starts(steps: int, extent: int, stride: int, padding: str) -> list[int]:
    """Where each window begins; before 0 it reaches into the padding.

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


def conv1d(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``Conv1D.call``: activation(sum over k of x[t + k dilation] W[k] + b). The mask ends here."""
    config = layer.config
    x = _channels_last(layer, context.number(x))  # (B, T, C)
    kernel = context.weight(layer, "kernel")  # (K, C / G, filters)
    extent = (config["kernel_size"] - 1) * config["dilation_rate"] + 1
    starts = _starts(x.shape[1], extent, config["strides"], config["padding"])
    padded = np.pad(x, [(0, 0), (extent, extent), (0, 0)])  # more than any window needs
    columns = []
    for start in starts:
        window = padded[:, start + extent :][:, : extent : config["dilation_rate"]]  # (B, K, C)
        groups = zip(
            np.split(window, config["groups"], axis=2),
            np.split(kernel, config["groups"], axis=2),
            strict=True,
        )
        columns.append(np.concatenate([np.tensordot(v, w, 2) for v, w in groups], axis=-1))
    y = np.stack(columns, axis=1)  # (B, T', filters)
    if config["use_bias"]:
        y = y + context.weight(layer, "bias")
    return activate(config["activation"], _channels_last(layer, y)), None


def pooling(reduce: Callable[..., Array]) -> Equation:
    """``MaxPooling1D`` or ``AveragePooling1D``: of the real steps of each window only."""

    def equation(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
        config = layer.config
        x = _channels_last(layer, context.number(x))
        size, stride = config["pool_size"], config["strides"] or config["pool_size"]
        starts = _starts(x.shape[1], size, stride, config["padding"])
        y = np.stack([reduce(x[:, max(s, 0) : s + size], axis=1) for s in starts], axis=1)
        return _channels_last(layer, y), None

    return equation


def global_max_pooling(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``GlobalMaxPooling1D.call``: the mask is not looked at."""
    y = _channels_last(layer, context.number(x)).max(axis=1, keepdims=True)
    return _whole(layer, y), None


def global_average_pooling(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``GlobalAveragePooling1D.call``: the mean of the steps that count, 0/0 if none does."""
    x = _channels_last(layer, context.number(x))
    valid = np.ones(x.shape[:2], dtype=bool)
    if mask is not None and layer.config["use_mask"]:
        valid = np.asarray(mask).astype(bool)
    if valid.shape != x.shape[:2]:
        raise ValueError(f"a mask of shape {x.shape[:2]} is expected, found {valid.shape}")
    weight = valid[:, :, np.newaxis].astype(x.dtype)
    total = np.where(valid[:, :, np.newaxis], x, 0).sum(axis=1, keepdims=True)
    return _whole(layer, total / weight.sum(axis=1, keepdims=True)), None


def _whole(layer: LayerSpec, y: Array) -> Array:
    """(B, 1, C) in the layer's format, or (B, C)."""
    return _channels_last(layer, y) if layer.config["keepdims"] else y[:, 0]
