"""Layers that pad, crop or repeat steps.

One axis (B, T, C) or two (B, H, W, C); ``channels_first`` moves the channels before and after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.reference.windows import as_given, channels_last
from keras2torch_birnn.spec import Array, LayerSpec, Structure


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
        if mode != "bilinear":
            x = _interpolated(x, axis, size, mode)
            continue
        steps = x.shape[axis]
        at = (np.arange(steps * size) + 0.5) / size - 0.5
        if layer.semantics["bilinear"] == "corners":  # in float32, with 1 / size rounded
            at = (np.arange(steps * size, dtype=np.float32) * np.float32(1 / size)).astype(float)
        at = np.clip(at, 0, steps - 1)
        low = np.floor(at).astype(int)
        share = (at - low).astype(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
        below, above = x.take(low, axis=axis), x.take(np.minimum(low + 1, steps - 1), axis=axis)
        x = below + (above - below) * share
    return as_given(layer, x), None


def _interpolated(x: Array, axis: int, size: int, mode: str) -> Array:
    """Compute ``tf.image.resize`` (2.15) without antialiasing.

    A weighted mean of steps within reach.

    It computes where things lie in float32, with 1 / size rounded.
    """
    steps, y = x.shape[axis], []
    scale = np.float32(1 / size)
    for i in range(steps * size):
        if mode == "area":
            share = _areas(steps, np.float32(i) * scale, np.float32(i + 1) * scale, scale)
        else:
            middle = np.float32(i + 0.5) * scale
            away = [abs(step + 0.5 - float(middle)) for step in range(steps)]
            share = np.array([_kernel(mode, d) for d in away])
            share = share / share.sum()
        y.append(np.tensordot(share, x, axes=(0, axis)))
    return np.stack(y, axis=axis).astype(x.dtype)


def _areas(steps: int, start: np.float32, end: np.float32, scale: np.float32) -> Array:
    """Compute ``ResizeAreaOp``: the part of every step between start and end, over the whole.

    Beyond the last step there is the last step once more.
    """
    share = np.zeros(steps)
    for step in range(math.floor(start), math.ceil(end)):
        own = np.float32(step)
        if own < start:
            part = scale if own + np.float32(1) > end else own + np.float32(1) - start
        else:
            part = end - own if own + np.float32(1) > end else np.float32(1)
        share[min(step, steps - 1)] += float(part)
    return share / float(scale)


def _kernel(mode: str, d: float) -> float:
    """Return the weight of a step at a distance.

    Keys' cubic with a = -1/2, of distances in 1/1024 (``resize_bicubic_op.cc``); the cubic of
    Mitchell and Netravali with b = c = 1/3; a normal distribution of deviation 1/2; Lanczos.
    """
    if mode == "bicubic":
        d, a = np.rint(d * 1024) / 1024, -0.5
        if d <= 1:
            return float((a + 2) * d**3 - (a + 3) * d**2 + 1)
        return float(a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a) if d < 2 else 0.0
    if mode == "mitchellcubic":
        if d < 1:
            return (21 * d**3 - 36 * d**2 + 16) / 18
        return (-7 * d**3 + 36 * d**2 - 60 * d + 32) / 18 if d < 2 else 0.0
    if mode == "gaussian":
        return math.exp(-(d**2) / (2 * 0.5**2)) if d < 1.5 else 0.0
    radius = int(mode.removeprefix("lanczos"))
    if d > radius:
        return 0.0
    x = math.pi * d
    return radius * math.sin(x) * math.sin(x / radius) / x**2 if d else 1.0


EQUATIONS: Mapping[str, Equation] = {
    "ZeroPadding1D": zero_padding,
    "ZeroPadding2D": zero_padding,
    "ZeroPadding3D": zero_padding,
    "Cropping1D": cropping,
    "Cropping2D": cropping,
    "Cropping3D": cropping,
    "UpSampling1D": up_sampling,
    "UpSampling2D": up_sampling,
    "UpSampling3D": up_sampling,
}
