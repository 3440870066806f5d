"""Layers that change images at random in Keras' training. The converted model leaves them alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from keras2torch_birnn.layers.registry import NONE, Converter
from keras2torch_birnn.schema.augmentation import LAYERS
from keras2torch_birnn.spec import LayerSpec


def unchanged(layer: LayerSpec) -> nn.Module:
    """Build the identity, which such a layer is at inference; a mask ends at it."""
    return nn.Identity()


CONVERTERS: Mapping[str, Converter] = dict.fromkeys(LAYERS, Converter(unchanged, NONE))
