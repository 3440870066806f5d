"""Layers that normalize. Sources: Keras 2.15 and 3.15, which agree unless said."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras2torch_birnn.reference.context import Context, Equation, Result, smallest_norm
from keras2torch_birnn.spec import Array, LayerSpec, Structure

# ---- normalisation -----------------------------------------------------------------------------


def _axes(layer: LayerSpec, x: Array) -> tuple[int, ...]:
    return tuple(sorted(axis % x.ndim for axis in layer.config["axis"]))


def _scale_and_shift(layer: LayerSpec, axes: tuple[int, ...], y: Array, context: Context) -> Array:
    """Compute gamma y + beta, each along the axes and only if the layer has it."""
    shape = _along(axes, y)
    if layer.config["scale"]:
        y = y * context.weight(layer, "gamma").reshape(shape)
    if layer.config["center"]:
        y = y + context.weight(layer, "beta").reshape(shape)
    return y


def _along(axes: tuple[int, ...], x: Array) -> tuple[int, ...]:
    """Return the shape of x with 1 for every axis that is not among ``axes``."""
    return tuple(size if axis in axes else 1 for axis, size in enumerate(x.shape))


def batch_normalization(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``BatchNormalization.call`` at inference.

    gamma (x - mean) / sqrt(variance + eps) + beta.
    """
    x = context.number(x)
    axes = _axes(layer, x)
    shape = _along(axes, x)
    mean = context.weight(layer, "moving_mean").reshape(shape)
    variance = context.weight(layer, "moving_variance").reshape(shape)
    y = (x - mean) / np.sqrt(variance + layer.config["epsilon"])
    return _scale_and_shift(layer, axes, y, context), mask


def layer_normalization(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``LayerNormalization.call``.

    The same with each sample's own mean and (biased) variance.
    """
    x = context.number(x)
    axes = _axes(layer, x)
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    if layer.config[
        "rms_scaling"
    ]:  # Keras 3.15 ``ops/nn.py``: the mean stays, gamma always, no beta
        gamma = context.weight(layer, "gamma").reshape(_along(axes, x))
        return x / np.sqrt(variance + layer.config["epsilon"]) * gamma, mask
    y = (x - mean) / np.sqrt(variance + layer.config["epsilon"])
    return _scale_and_shift(layer, axes, y, context), mask


def group_normalization(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``GroupNormalization.call``: each sample's groups of channels, over all other axes.

    tf.keras (2.15) weighs by a mask that has been broadcast to the input's shape; a mask of steps
    does not fit unless time and channels are equal, and then it is taken for one of channels.
    """
    x, config = context.number(x), layer.config
    if mask is not None and context.generation.name != "keras3":
        raise ValueError("a mask into GroupNormalization is not known")
    moved = np.moveaxis(x, config["axis"], 1)
    count = moved.shape[1] if config["groups"] == -1 else config["groups"]
    parts = []
    for part in np.split(moved, count, axis=1):
        axes = tuple(range(1, part.ndim))
        mean, variance = part.mean(axis=axes, keepdims=True), part.var(axis=axes, keepdims=True)
        parts.append((part - mean) / np.sqrt(variance + config["epsilon"]))
    y = np.moveaxis(np.concatenate(parts, axis=1), 1, config["axis"])
    return _scale_and_shift(layer, (config["axis"] % x.ndim,), y, context), mask


def unit_normalization(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``UnitNormalization.call``.

    x over its length along the axes, or over a smallest length.
    """
    x = context.number(x)
    length = np.sqrt(np.sum(x * x, axis=layer.config["axis"], keepdims=True))
    return x / np.maximum(length, smallest_norm(context.generation)), mask


def rms_normalization(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``RMSNormalization.call`` (Keras 3.15).

    x / sqrt(mean(x^2) + eps) scale. No mask support.
    """
    x = context.number(x)
    square = np.mean(x * x, axis=layer.config["axis"], keepdims=True)
    scale = context.weight(layer, "scale")
    return x / np.sqrt(square + layer.config["epsilon"]) * scale, None


EQUATIONS: Mapping[str, Equation] = {
    "BatchNormalization": batch_normalization,
    "LayerNormalization": layer_normalization,
    "GroupNormalization": group_normalization,
    "UnitNormalization": unit_normalization,
    "RMSNormalization": rms_normalization,
}
