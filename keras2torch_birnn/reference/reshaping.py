"""Layers that give values another shape, pad, crop or resize them, or pool them.

Letters: B batch, T time, C channels, F features. Sources name class and method of Keras 2.15 and
3.15, which agree unless said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.reference.convolution import as_given, channels_last, pool
from keras2torch_birnn.schema.row import for_ranks
from keras2torch_birnn.spec import Array, LayerSpec, Structure

# ---- the same values in another shape ------------------------------------------------------------


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


# ---- padding, cropping, resizing -----------------------------------------------------------------


def zero_padding(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``ZeroPadding1D.call``, ``ZeroPadding2D.call``: zeros before and after, per axis."""
    x = channels_last(layer, context.number(x))
    return as_given(layer, np.pad(x, [(0, 0), *layer.config["padding"], (0, 0)])), None


def cropping(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Cropping1D.call``, ``Cropping2D.call``: the first and last steps go, per axis."""
    x = channels_last(layer, context.number(x))
    for axis, (before, after) in enumerate(layer.config["cropping"], 1):
        if before + after >= x.shape[axis]:
            raise ValueError(f"cropping {[before, after]} leaves nothing of {x.shape[axis]}")
        x = x.take(range(before, x.shape[axis] - after), axis=axis)
    return as_given(layer, x), None


def up_sampling(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``UpSampling1D.call``, ``UpSampling2D.call``.

    Every step repeated, or between neighbours.

    Bilinear is ``tf.image.resize`` of TensorFlow 2: output i is at (i + 0.5) / size - 0.5, clipped
    to the input; one axis after the other. In TensorFlow 1 it is at i / size.
    """
    x = channels_last(layer, context.number(x))
    mode = layer.config.get("interpolation", "nearest")
    for axis, size in enumerate(layer.config["size"], 1):
        if mode == "nearest":
            x = x.repeat(size, axis=axis)
            continue
        steps = x.shape[axis]
        at = (np.arange(steps * size) + 0.5) / size - 0.5
        if layer.semantics["bilinear"] == "corners":  # in float32, with 1 / size rounded
            at = (np.arange(steps * size, dtype=np.float32) * np.float32(1 / size)).astype(float)
        x = _between(x, axis, at)
    return as_given(layer, x), None


def _between(x: Array, axis: int, at: Array) -> Array:
    """Interpolate linearly at places among the steps, clipped to them."""
    last = x.shape[axis] - 1
    at = np.clip(at, 0, last)
    low = np.floor(at).astype(int)
    share = (at - low).astype(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
    below, above = x.take(low, axis=axis), x.take(np.minimum(low + 1, last), axis=axis)
    between: Array = below + (above - below) * share
    return between


def resizing(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Resizing.call``.

    ``tf.image.resize`` (2.15) of the image, or of its middle part of the wanted aspect ratio
    (``smart_resize``).
    """
    x = channels_last(layer, context.number(x))
    wanted: tuple[int, int] = (layer.config["height"], layer.config["width"])
    size = tuple(x.shape[1:3])
    if layer.config["crop_to_aspect_ratio"]:
        by_width = math.floor(size[1] * wanted[0] / wanted[1])
        by_height = math.floor(size[0] * wanted[1] / wanted[0])
        x = _middle(x, (min(size[0], max(by_width, 1)), min(size[1], max(by_height, 1))))
    for axis, target in enumerate(wanted, 1):
        steps = x.shape[axis]
        if layer.config["interpolation"] == "nearest":
            middles = np.arange(target, dtype=np.float32) + np.float32(0.5)
            at = np.floor(middles * np.float32(steps / target)).astype(int)
            x = x.take(np.minimum(at, steps - 1), axis=axis)
        else:
            x = _between(x, axis, (np.arange(target) + 0.5) * steps / target - 0.5)
    return as_given(layer, x), None


def _middle(x: Array, size: tuple[int, int]) -> Array:
    """Cut the middle out of (B, H, W, C); the smaller half of an odd rest is before it."""
    top, left = ((have - want) // 2 for have, want in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]


# ---- pooling -------------------------------------------------------------------------------------


def pooling(reduce: Callable[..., Array]) -> Equation:
    """Compute ``MaxPooling`` or ``AveragePooling``: of the real steps of each window only."""

    def equation(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
        x = channels_last(layer, context.number(x))
        sizes = layer.config["pool_size"]
        strides = layer.config["strides"] or sizes
        y = pool(reduce, x, sizes, strides, layer.config["padding"])
        return as_given(layer, y), None

    return equation


def global_max_pooling(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``GlobalMaxPooling.call``: the mask is not looked at."""
    x = channels_last(layer, context.number(x))
    return _whole(layer, x.max(axis=tuple(range(1, x.ndim - 1)), keepdims=True)), None


def global_average_pooling(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``GlobalAveragePooling.call``: the mean of the steps that count, 0/0 if none does.

    Of two axes: of all, the mask is not looked at.
    """
    x = channels_last(layer, context.number(x))
    valid = np.ones(x.shape[:-1], dtype=bool)
    if mask is not None and layer.semantics.get("use_mask"):
        valid = np.asarray(mask).astype(bool)
    if valid.shape != x.shape[:-1]:
        raise ValueError(f"a mask of shape {x.shape[:-1]} is expected, found {valid.shape}")
    axes = tuple(range(1, x.ndim - 1))
    weight = valid[..., np.newaxis].astype(x.dtype)
    total = np.where(valid[..., np.newaxis], x, 0).sum(axis=axes, keepdims=True)
    return _whole(layer, total / weight.sum(axis=axes, keepdims=True)), None


def _whole(layer: LayerSpec, y: Array) -> Array:
    """Return (B, 1, C) in the layer's format, or (B, C)."""
    return as_given(layer, y) if layer.config["keepdims"] else y.reshape(len(y), y.shape[-1])


EQUATIONS: Mapping[str, Equation] = {
    "Flatten": flatten,
    "Reshape": reshape,
    "Permute": permute,
    "RepeatVector": repeat_vector,
    **for_ranks("ZeroPadding{}D", lambda _: zero_padding),
    **for_ranks("Cropping{}D", lambda _: cropping),
    **for_ranks("UpSampling{}D", lambda _: up_sampling),
    "Resizing": resizing,
    **for_ranks("MaxPooling{}D", lambda _: pooling(np.max)),
    **for_ranks("AveragePooling{}D", lambda _: pooling(np.mean)),
    **for_ranks("GlobalMaxPooling{}D", lambda _: global_max_pooling),
    **for_ranks("GlobalAveragePooling{}D", lambda _: global_average_pooling),
}
