"""Layers that Keras calls preprocessing (``layers/preprocessing`` of Keras 2.15 and 3.15).

Keras holds their constants in float32. tf.keras drops the mask, Keras 3 passes it on where said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.schema import AUGMENTATION
from keras2torch_birnn.spec import Array, LayerSpec, Structure

# ``backend.epsilon()``: the smallest deviation of Normalization
SMALLEST_DEVIATION = 1e-7


def _single(value: object) -> Array:
    """Round a constant to float32, as Keras stores it."""
    return np.asarray(value, dtype=np.float32)


def _passed(mask: Structure, context: Context) -> Structure:
    return mask if context.generation.name == "keras3" else None


def normalization(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Normalization.call``: by the statistics of ``adapt``, or by those of the config.

    Those of the config are broadcast to the kept axes' sizes, from the last one on.
    """
    x = context.number(x)
    kept = sorted(axis % x.ndim for axis in layer.config["axis"])
    sizes = [x.shape[axis] for axis in kept]
    place = [size if axis in kept else 1 for axis, size in enumerate(x.shape)]

    def statistic(name: str) -> Array:
        if layer.config[name] is None:
            return context.weight(layer, name).reshape(place)
        given = context.number(_single(layer.config[name]))
        return np.broadcast_to(given, sizes).reshape(place)

    mean = statistic("mean")
    deviation = np.maximum(np.sqrt(statistic("variance")), SMALLEST_DEVIATION)
    y = mean + x * deviation if layer.config["invert"] else (x - mean) / deviation
    return y, _passed(mask, context)


def rescaling(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Rescaling.call``: x scale + offset."""
    scale, offset = (context.number(_single(layer.config[n])) for n in ("scale", "offset"))
    return context.number(x) * scale + offset, _passed(mask, context)


def encoded(ids: Array, mode: str, depth: int, context: Context, weights: Any = 1.0) -> Array:
    """Compute ``encode_categorical_inputs``.

    Rows of the unit matrix, their maximum or their sum, in which ``weights`` count.
    """
    if mode == "one_hot" and ids.ndim > 1 and ids.shape[-1] == 1:
        ids = ids[..., 0]
    joined = mode != "one_hot"
    rows = np.zeros((*(ids.shape[:-1] if joined else ids.shape), depth))
    inside = (ids >= 0) & (ids < depth)
    at = np.nonzero(inside)
    place = (*(at[:-1] if joined else at), ids[inside])
    np.add.at(rows, place, np.broadcast_to(weights, ids.shape)[inside])
    return context.number(np.minimum(rows, 1) if mode == "multi_hot" else rows)


def category_encoding(layer: LayerSpec, x: Structure, mask: Structure, context: Context) -> Result:
    """Compute ``CategoryEncoding.call``.

    An id that is no token gives zeros; ids may have weights.
    """
    config = layer.config
    if isinstance(x, tuple):
        ids, weights = np.asarray(x[0]).astype(np.int64), context.number(x[1])
        return encoded(ids, "count", config["num_tokens"], context, weights), None
    ids = np.asarray(x).astype(np.int64)
    return encoded(ids, config["output_mode"], config["num_tokens"], context), None


# ---- augmentation --------------------------------------------------------------------------------


def unchanged(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Return the images: ``transform_images`` with ``training=False`` (Keras 3.15).

    tf.keras (2.15 ``layers/preprocessing/image_preprocessing.py``) calls ``smart_cond``.
    """
    return x, None


EQUATIONS: Mapping[str, Equation] = {
    "Normalization": normalization,
    "Rescaling": rescaling,
    "CategoryEncoding": category_encoding,
    **dict.fromkeys(AUGMENTATION, unchanged),
}
