"""Source text of Masking; the mask itself is a node of the graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras2torch_birnn.exporting.source.emission import Emission, Emit, literal
from keras2torch_birnn.spec import LayerSpec


def _masking(layer: LayerSpec, name: str) -> Emission:
    value = literal(float(np.float32(layer.config["mask_value"])))
    return Emission(lambda site: f"{site.x} * ({site.x} != {value}).any(dim=-1, keepdim=True)")


EMITTERS: Mapping[str, Emit] = {"Masking": _masking}
