"""Layers that change the shape of their input. All drop the mask.

Letters: B batch, T time, F features. Sources name class and method of Keras 2.15 and 3.15, which
agree unless said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import Array, LayerSpec, Structure


def flatten(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Flatten.call``.

    (B, ...) -> (B, all); channels_first moves axis 1 to the end first.
    """
    if layer.config["data_format"] == "channels_first" and x.ndim > 1:
        x = np.moveaxis(x, 1, -1)
    return x.reshape(len(x), math.prod(x.shape[1:])), None


def reshape(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Reshape.call``: (B, ...) -> (B, *target_shape), one size may be -1."""
    target = layer.config["target_shape"]
    known = math.prod(size for size in target if size != -1)
    free = math.prod(x.shape[1:]) // max(known, 1)
    return x.reshape(len(x), *(free if size == -1 else size for size in target)), None


def permute(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Permute.call``: axis i + 1 of the output is axis dims[i] of the input."""
    return x.transpose(0, *layer.config["dims"]), None


def repeat_vector(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``RepeatVector.call``: (B, F) -> (B, n, F)."""
    return np.repeat(x[:, np.newaxis], layer.config["n"], axis=1), None


EQUATIONS: Mapping[str, Equation] = {
    "Flatten": flatten,
    "Reshape": reshape,
    "Permute": permute,
    "RepeatVector": repeat_vector,
}
