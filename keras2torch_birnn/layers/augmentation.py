"""Layers that change images at random in Keras' training. The converted model leaves them alone."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.layers.registry import NONE, Converter, leave_alone
from keras2torch_birnn.schema.augmentation import LAYERS

CONVERTERS: Mapping[str, Converter] = dict.fromkeys(LAYERS, Converter(leave_alone, NONE))
