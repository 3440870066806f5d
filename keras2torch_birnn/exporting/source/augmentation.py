"""Source text of layers that change images at random, in training only."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.dropout import same
from keras2torch_birnn.exporting.source.emission import Emit
from keras2torch_birnn.schema.augmentation import LAYERS

EMITTERS: Mapping[str, Emit] = dict.fromkeys(LAYERS, same)
