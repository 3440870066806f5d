"""Dense layers, Embedding, Masking, activations, and layers that act in training only.

Letters: B batch, T time, F features. Sources name class and method of Keras 2.15 and 3.15, which
agree unless said.
"""

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
from keras2torch_birnn.schema.row import for_ranks
from keras2torch_birnn.spec import Array, LayerSpec, Structure

# ---- Dense and EinsumDense -----------------------------------------------------------------------


def dense(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Dense.call``: activation(x W + b) over the last axis."""
    y = context.number(x) @ context.weight(layer, "kernel")
    if layer.config["use_bias"]:
        y = y + context.weight(layer, "bias")
    return activate(layer.config["activation"], y), mask


def einsum_dense(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``EinsumDense.call``: activation(einsum(equation, x, W) + b). The mask ends here."""
    y = np.einsum(layer.config["equation"], context.number(x), context.weight(layer, "kernel"))
    if layer.config["bias_axes"] is not None:
        y = y + context.weight(layer, "bias")
    return activate(layer.config["activation"], y), None


# ---- Embedding -----------------------------------------------------------------------------------


def embedding(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Embedding.call``.

    Row number id, an id that is not whole is cut; (B, T) -> (B, T, F).

    ``Embedding.compute_mask``: the mask is id != 0, before the cut; the incoming one is dropped.
    """
    ids = np.asarray(x).astype(np.int64)
    if np.any(ids < 0):
        raise ValueError(f"layer {layer.name}: ids from 0 on are expected, found {ids.min()}")
    out_mask = np.asarray(x) != 0 if layer.config["mask_zero"] else None
    rows = context.number(layer.weights["embeddings"][ids])
    return rows, out_mask


# ---- Masking -------------------------------------------------------------------------------------


def masking(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Masking.call``: a step all equal to mask_value is masked and zeroed.

    The incoming mask is dropped. Keras compares in float32, where 0.1 equals 0.1.
    """
    mask_value = np.float32(layer.config["mask_value"])
    valid = np.any(np.asarray(x).astype(np.float32) != mask_value, axis=-1)
    return np.where(valid[..., np.newaxis], x, 0), valid


# ---- activations ---------------------------------------------------------------------------------

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


# ---- layers that act in training only ------------------------------------------------------------


def identity(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Return the input: layers that act in training only."""
    return x, mask


def identity_layer(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Identity.call``: tf.keras (2.15) has no ``supports_masking`` there, Keras 3 has."""
    return x, mask if context.generation.name == "keras3" else None


EQUATIONS: Mapping[str, Equation] = {
    "Dense": dense,
    "EinsumDense": einsum_dense,
    "Embedding": embedding,
    "Masking": masking,
    "Activation": activation,
    "ReLU": relu,
    "LeakyReLU": activation_layer("leaky_relu"),
    "ELU": activation_layer("elu"),
    "ThresholdedReLU": thresholded_relu,
    "Softmax": softmax,
    "PReLU": prelu,
    "Dropout": identity,
    **for_ranks("SpatialDropout{}D", lambda _: identity),
    "Identity": identity_layer,
    "GaussianNoise": identity,
    "GaussianDropout": identity,
    "AlphaDropout": identity,
    "ActivityRegularization": identity,
}
