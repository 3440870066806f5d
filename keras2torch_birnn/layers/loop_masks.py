"""Mask flow of the layers that loop over time."""

from __future__ import annotations

from keras2torch_birnn.layers.registry import USES, MaskFlow
from keras2torch_birnn.spec import LayerSpec

_NO_MASK = "a mask into {} is not supported: this Keras fails on it as well"


def loop_mask(layer: LayerSpec) -> MaskFlow:
    """Return the mask flow of a recurrent layer or a Bidirectional."""
    one = layer.parts.get("forward_layer", layer)
    halves = layer.parts.values() if layer.class_name == "Bidirectional" else (layer,)
    if any(half.semantics["masked_output"] == "fails" for half in halves):
        what = "cells of different width" if one.class_name == "RNN" else one.class_name
        return MaskFlow(refused=_NO_MASK.format(what))
    # The output has steps, and so a mask, only with return_sequences.
    return MaskFlow(takes=True) if one.config["return_sequences"] else USES
