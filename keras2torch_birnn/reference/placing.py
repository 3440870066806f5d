"""Layers that put zeros around the steps, take steps away or repeat them.

One axis (B, T, C) or two (B, H, W, C); ``channels_first`` moves the channels before and after.
"""

from __future__ import annotations

import numpy as np

from keras2torch_birnn.reference.context import Context
from keras2torch_birnn.reference.windows import Result, as_given, channels_last
from keras2torch_birnn.spec import Array, LayerSpec, Structure


def zero_padding(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``ZeroPadding1D.call``, ``ZeroPadding2D.call``: zeros before and after, per axis."""
    x = channels_last(layer, context.number(x))
    return as_given(layer, np.pad(x, [(0, 0), *layer.config["padding"], (0, 0)])), None


def cropping(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``Cropping1D.call``, ``Cropping2D.call``: the first and last steps go, per axis."""
    x = channels_last(layer, context.number(x))
    for axis, (before, after) in enumerate(layer.config["cropping"], 1):
        if before + after >= x.shape[axis]:
            raise ValueError(f"cropping {[before, after]} leaves nothing of {x.shape[axis]}")
        x = x.take(range(before, x.shape[axis] - after), axis=axis)
    return as_given(layer, x), None


def up_sampling(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """``UpSampling1D.call``, ``UpSampling2D.call``: every step repeated, or between neighbours.

    Bilinear is ``tf.image.resize`` of TensorFlow 2: output i lies at (i + 0.5) / size - 0.5, held
    within the input; one axis after the other.
    """
    x = channels_last(layer, context.number(x))
    for axis, size in enumerate(layer.config["size"], 1):
        if layer.config.get("interpolation", "nearest") == "nearest":
            x = x.repeat(size, axis=axis)
            continue
        steps = x.shape[axis]
        at = np.clip((np.arange(steps * size) + 0.5) / size - 0.5, 0, steps - 1)
        low = np.floor(at).astype(int)
        share = (at - low).astype(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
        below, above = x.take(low, axis=axis), x.take(np.minimum(low + 1, steps - 1), axis=axis)
        x = below + (above - below) * share
    return as_given(layer, x), None
