"""Masking (Keras 2.15 and 3.15)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import Array, LayerSpec, Structure


def masking(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Masking.call``: a step all equal to mask_value is masked and zeroed.

    The incoming mask is dropped. Keras compares in float32, where 0.1 equals 0.1.
    """
    mask_value = np.float32(layer.config["mask_value"])
    valid = np.any(np.asarray(x).astype(np.float32) != mask_value, axis=-1)
    return np.where(valid[..., np.newaxis], x, 0), valid


EQUATIONS: Mapping[str, Equation] = {
    "Masking": masking,
}
