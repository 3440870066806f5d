"""Masking, which makes a mask from features, and the masks of layers that loop over time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from keras2torch_birnn.layers.registry import USES, Converter, Described, MaskFlow
from keras2torch_birnn.spec import LayerSpec


def differs(x: Tensor, mask: Tensor | None, value: float) -> Tensor:
    """Make Masking's mask: a step is valid if any feature differs from ``value``."""
    return x.ne(value).any(dim=-1)


class Masking(Described):
    """Zeros at steps where every feature is ``mask_value``; the mask marks the others."""

    def __init__(self, mask_value: float) -> None:
        super().__init__()
        self.mask_value = mask_value

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Set masked steps of (B, ..., F) to zero; ``mask``: its own, where that is known."""
        if mask is None:
            mask = differs(x, None, self.mask_value)
        return x * mask[..., None].to(x.dtype)


def call_with_mask(module: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Call a Masking with the mask that ``differs`` made of x, or what a user put in its place."""
    found: Tensor = module(x, mask=mask) if type(module) is Masking else module(x)
    return found


def _single(layer: LayerSpec) -> float:
    """Return the value as Keras compares it: in float32, whatever the model computes in."""
    return float(np.float32(layer.config["mask_value"]))


def _masking_mask(layer: LayerSpec) -> MaskFlow:
    return MaskFlow(after=differs, makes=True, constants={"value": _single(layer)})


def masking(layer: LayerSpec) -> nn.Module:
    """Build a Masking."""
    return Masking(_single(layer))


# ---- layers that loop over time -----------------------------------------------------------------

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


CONVERTERS: Mapping[str, Converter] = {
    "Masking": Converter(masking, _masking_mask),
}
