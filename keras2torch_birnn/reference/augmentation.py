"""Layers that change images at random, in training only."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.schema.augmentation import LAYERS
from keras2torch_birnn.spec import Array, LayerSpec, Structure


def unchanged(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Return the images: ``transform_images`` with ``training=False`` (Keras 3.15).

    tf.keras (2.15 ``layers/preprocessing/image_preprocessing.py``) calls ``smart_cond``.
    """
    return x, None


EQUATIONS: Mapping[str, Equation] = dict.fromkeys(LAYERS, unchanged)
