"""Activation layers. Sources: Keras 2.15 and 3.15, which agree unless said."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras2torch_birnn.reference import activations
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.context import (
    Context,
    Equation,
    Result,
    relu_passes_mask,
    softmax_uses_mask,
    softmax_zeroes_masked,
)
from keras2torch_birnn.spec import Array, LayerSpec, Structure

# ``_large_negative_number``, for float32: what Softmax puts in the place of masked values
LARGE_NEGATIVE = -1e9


def activation(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Activation.call``."""
    return activate(layer.config["activation"], context.number(x)), mask


def activation_layer(name: str) -> Equation:
    """Make the equation of a layer whose options are those of the activation ``name``."""

    def equation(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
        options = {key: value for key, value in layer.config.items() if key != "trainable"}
        return activate({"name": name, **options}, context.number(x)), mask

    return equation


def relu(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``ReLU.call``."""
    options = {key: layer.config[key] for key in ("negative_slope", "max_value", "threshold")}
    y = activations.relu(context.number(x), **options)
    return y, mask if relu_passes_mask(context.generation) else None


def thresholded_relu(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``ThresholdedReLU.call`` (2.15): x times (x > theta), NaN of NaN and -infinity."""
    x = context.number(x)
    return x * (x > layer.config["theta"]), mask


def prelu(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``PReLU.call``: relu(x) - alpha relu(-x); alpha has size 1 on shared axes."""
    x = context.number(x)
    return np.maximum(x, 0) - context.weight(layer, "alpha") * np.maximum(-x, 0), mask


def softmax(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Softmax.call``: over one axis or several together.

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


EQUATIONS: Mapping[str, Equation] = {
    "Activation": activation,
    "ReLU": relu,
    "LeakyReLU": activation_layer("leaky_relu"),
    "ELU": activation_layer("elu"),
    "ThresholdedReLU": thresholded_relu,
    "Softmax": softmax,
    "PReLU": prelu,
}
