"""Windows over the axes between batch and channels: shared by convolution, pooling and resizing.

Letters: B batch, T time, C channels. One axis or two: everything is computed as (B, T, C) or
(B, H, W, C); ``channels_first`` moves the channels before and after.
"""

from __future__ import annotations

import numpy as np

from keras2torch_birnn.spec import Array, LayerSpec


def channels_last(layer: LayerSpec, x: Array) -> Array:
    """Return (B, T, C) from the layer's format."""
    return x if layer.config["data_format"] == "channels_last" else np.moveaxis(x, 1, -1)


def as_given(layer: LayerSpec, y: Array) -> Array:
    """Return (B, T, C) in the layer's format."""
    return y if layer.config["data_format"] == "channels_last" else np.moveaxis(y, -1, 1)


def window_starts(steps: int, extent: int, stride: int, padding: str) -> list[int]:
    """Return where each window begins; before 0 it reaches into the padding.

    ``conv_output_length`` (Keras 2.15) and TensorFlow's SAME: the odd step is padded at the end.
    """
    if padding == "valid":
        starts = list(range(0, steps - extent + 1, stride))
    else:
        count = -(-steps // stride)
        lacking = max((count - 1) * stride + extent - steps, 0)
        first = extent - 1 if padding == "causal" else lacking // 2
        starts = [index * stride - first for index in range(count)]
    if not starts:
        raise ValueError(f"a window of {extent} does not fit the {steps} steps")
    return starts
