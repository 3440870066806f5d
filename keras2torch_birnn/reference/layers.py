"""Layers that look at one position or one sample at a time, and those that change shapes.

Letters: B batch, T time, F features. Sources name class and method of Keras 2.15 and 3.15, which
agree unless said.
"""

from __future__ import annotations

import math

import numpy as np

from keras2torch_birnn.reference import activations
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.context import (
    Context,
    Equation,
    relu_passes_mask,
    smallest_norm,
    softmax_uses_mask,
    softmax_zeroes_masked,
)
from keras2torch_birnn.spec import Array, LayerSpec, Structure

Result = tuple[Structure, Structure]

# ``_large_negative_number``, for float32: what Softmax puts in the place of masked values
LARGE_NEGATIVE = -1e9


def identity(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Layers that do something in training only."""
    return x, mask


def identity_layer(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``Identity.call``: tf.keras (2.15) has no ``supports_masking`` there, Keras 3 has."""
    return x, mask if context.generation.name == "keras3" else None


def input_layer(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """An input: cast to its kind (``Functional._conform_to_reference_input``, 2.15)."""
    kind = str(layer.config["dtype"])
    if kind.startswith(("int", "uint")):
        return np.asarray(x).astype(np.int64), mask
    if kind == "bool":
        return np.asarray(x).astype(bool), mask
    return context.number(x), mask


# ---- dense, embedding, masking -----------------------------------------------------------------


def dense(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``Dense.call``: activation(x W + b) over the last axis.

    ``Dense._int8_call`` (3.15): x goes to whole numbers from -127 to 127, the largest of each row
    becoming 127, W is whole numbers already; the product is divided by both scales.
    """
    x, kernel = context.number(x), context.weight(layer, "kernel")
    if layer.config.get("quantized") is None:
        y = x @ kernel
    else:
        scale = context.weight(layer, "kernel_scale")
        if layer.config["quantized"] == "inputs and weights":
            to_whole = 127 / (np.max(np.abs(x), axis=-1, keepdims=True) + 1e-7)
            x, scale = np.clip(np.round(x * to_whole), -127, 127), scale * to_whole
        y = (x @ kernel) / scale
    if layer.config["use_bias"]:
        y = y + context.weight(layer, "bias")
    return activate(layer.config["activation"], y), mask


def einsum_dense(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``EinsumDense.call``: activation(einsum(equation, x, W) + b). The mask ends here."""
    y = np.einsum(layer.config["equation"], context.number(x), context.weight(layer, "kernel"))
    if layer.config["bias_axes"] is not None:
        y = y + context.weight(layer, "bias")
    return activate(layer.config["activation"], y), None


def highway(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``Highway.call`` (Keras 1.2.2): a gate between the activation and the input itself."""
    x = context.number(x)
    through, carry = x @ context.weight(layer, "W"), x @ context.weight(layer, "W_carry")
    if layer.config["use_bias"]:
        through = through + context.weight(layer, "b")
        carry = carry + context.weight(layer, "b_carry")
    gate = activate("sigmoid", carry)
    return gate * activate(layer.config["activation"], through) + (1 - gate) * x, None


def maxout(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``MaxoutDense.call`` (Keras 1.2.2): the largest of several products; W (K, F, units)."""
    products = np.einsum("bf,kfu->bku", context.number(x), context.weight(layer, "W"))
    if layer.config["use_bias"]:
        products = products + context.weight(layer, "b")
    return products.max(axis=1), None


def embedding(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``Embedding.call``: row number id, an id that is not whole is cut; (B, T) -> (B, T, F).

    ``Embedding.compute_mask``: the mask is id != 0, before the cut; the incoming one is dropped.
    """
    ids = np.asarray(x).astype(np.int64)
    if np.any(ids < 0):
        raise ValueError(f"layer {layer.name}: ids from 0 on are expected, found {ids.min()}")
    out_mask = np.asarray(x) != 0 if layer.config["mask_zero"] else None
    rows = context.number(layer.weights["embeddings"][ids])
    if layer.config.get("quantized") is not None:  # ``Embedding._int8_call`` (3.15)
        rows = rows / context.number(layer.weights["embeddings_scale"][ids])[..., np.newaxis]
    return rows, out_mask


def masking(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``Masking.call``: a step all equal to mask_value is masked and zeroed.

    The incoming mask is dropped. Keras compares in float32, where 0.1 equals 0.1.
    """
    mask_value = np.float32(layer.config["mask_value"])
    valid = np.any(np.asarray(x).astype(np.float32) != mask_value, axis=-1)
    return np.where(valid[..., np.newaxis], x, 0), valid


# ---- activations -------------------------------------------------------------------------------


def activation(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``Activation.call``."""
    return activate(layer.config["activation"], context.number(x)), mask


def activation_layer(name: str) -> Equation:
    """A layer whose options are those of the activation ``name``."""

    def equation(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
        options = {key: value for key, value in layer.config.items() if key != "trainable"}
        return activate({"name": name, **options}, context.number(x)), mask

    return equation


def relu(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``ReLU.call``."""
    options = {key: layer.config[key] for key in ("negative_slope", "max_value", "threshold")}
    y = activations.relu(context.number(x), **options)
    return y, mask if relu_passes_mask(context.generation) else None


def thresholded_relu(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``ThresholdedReLU.call`` (2.15): x where x > theta, else 0."""
    return np.where(x > layer.config["theta"], context.number(x), 0), mask


def prelu(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``PReLU.call``: relu(x) - alpha relu(-x); alpha has size 1 on shared axes."""
    x = context.number(x)
    return np.maximum(x, 0) - context.weight(layer, "alpha") * np.maximum(-x, 0), mask


def softmax(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``Softmax.call``: over one axis or several together.

    The mask is broadcast against x from the last axis on, as it comes: a mask of steps rarely fits.
    tf.keras adds -1e9 to masked values, as does Keras 3 before 3.13; since then it replaces them
    and zeroes the result.
    """
    x, axis = context.number(x), layer.config["axis"]
    if mask is None or not softmax_uses_mask(context.generation):
        return activations.softmax(x, axis), mask
    if np.broadcast_shapes(np.shape(mask), x.shape) != x.shape:
        raise ValueError(f"a mask of shape {np.shape(mask)} does not fit values {x.shape}")
    if softmax_zeroes_masked(context.generation):
        return np.where(mask, activations.softmax(np.where(mask, x, LARGE_NEGATIVE), axis), 0), mask
    return activations.softmax(x + np.where(mask, 0, LARGE_NEGATIVE), axis), mask


# ---- operations (keras.ops) ---------------------------------------------------------------------


# ---- normalisation -----------------------------------------------------------------------------


def _axes(layer: LayerSpec, x: Array) -> tuple[int, ...]:
    return tuple(sorted(axis % x.ndim for axis in layer.config["axis"]))


def _scale_and_shift(layer: LayerSpec, x: Array, y: Array, context: Context) -> Array:
    """gamma y + beta, each only if the layer has it."""
    shape = _along(_axes(layer, x), x)
    if layer.config["scale"]:
        y = y * context.weight(layer, "gamma").reshape(shape)
    if layer.config["center"]:
        y = y + context.weight(layer, "beta").reshape(shape)
    return y


def _along(axes: tuple[int, ...], x: Array) -> tuple[int, ...]:
    """The shape of x with 1 for every axis that is not among ``axes``."""
    return tuple(size if axis in axes else 1 for axis, size in enumerate(x.shape))


def batch_normalization(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``BatchNormalization.call`` at inference: gamma (x - mean) / sqrt(variance + eps) + beta."""
    x = context.number(x)
    shape = _along(_axes(layer, x), x)
    mean = context.weight(layer, "moving_mean").reshape(shape)
    variance = context.weight(layer, "moving_variance").reshape(shape)
    y = (x - mean) / np.sqrt(variance + layer.config["epsilon"])
    return _scale_and_shift(layer, x, y, context), mask


def layer_normalization(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``LayerNormalization.call``: the same with each sample's own mean and (biased) variance."""
    x = context.number(x)
    axes = _axes(layer, x)
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    if layer.config[
        "rms_scaling"
    ]:  # Keras 3.15 ``ops/nn.py``: the mean stays, gamma always, no beta
        gamma = context.weight(layer, "gamma").reshape(_along(axes, x))
        return x / np.sqrt(variance + layer.config["epsilon"]) * gamma, mask
    y = (x - mean) / np.sqrt(variance + layer.config["epsilon"])
    return _scale_and_shift(layer, x, y, context), mask


def group_normalization(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``GroupNormalization.call``: each sample's groups of channels, over all other axes.

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
    shape = _along((config["axis"] % x.ndim,), x)
    if config["scale"]:
        y = y * context.weight(layer, "gamma").reshape(shape)
    if config["center"]:
        y = y + context.weight(layer, "beta").reshape(shape)
    return y, mask


def unit_normalization(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``UnitNormalization.call``: x over its length along the axes, or over a smallest length."""
    x = context.number(x)
    length = np.sqrt(np.sum(x * x, axis=layer.config["axis"], keepdims=True))
    return x / np.maximum(length, smallest_norm(context.generation)), mask


def rms_normalization(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``RMSNormalization.call`` (Keras 3.15): x / sqrt(mean(x^2) + eps) scale. No mask support."""
    x = context.number(x)
    square = np.mean(x * x, axis=layer.config["axis"], keepdims=True)
    scale = context.weight(layer, "scale")
    return x / np.sqrt(square + layer.config["epsilon"]) * scale, None


# ---- shapes: all drop the mask -----------------------------------------------------------------


def flatten(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``Flatten.call``: (B, ...) -> (B, all); channels_first moves axis 1 to the end first."""
    if layer.config["data_format"] == "channels_first" and x.ndim > 1:
        x = np.moveaxis(x, 1, -1)
    return x.reshape(len(x), math.prod(x.shape[1:])), None


def reshape(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``Reshape.call``: (B, ...) -> (B, *target_shape), one size may be -1."""
    target = layer.config["target_shape"]
    known = math.prod(size for size in target if size != -1)
    free = math.prod(x.shape[1:]) // max(known, 1)
    return x.reshape(len(x), *(free if size == -1 else size for size in target)), None


def permute(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``Permute.call``: axis i + 1 of the output is axis dims[i] of the input."""
    return x.transpose(0, *layer.config["dims"]), None


def repeat_vector(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``RepeatVector.call``: (B, F) -> (B, n, F)."""
    return np.repeat(x[:, np.newaxis], layer.config["n"], axis=1), None
