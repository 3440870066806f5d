"""Source text of Masking; the mask itself is a node of the graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras2torch_birnn.exporting.source.code import code
from keras2torch_birnn.exporting.source.emission import Emission, Emit
from keras2torch_birnn.spec import LayerSpec


def _masking(layer: LayerSpec, name: str) -> Emission:
    value = float(np.float32(layer.config["mask_value"]))
    return Emission(
        lambda site: code("{} * ({} != {}).any(dim=-1, keepdim=True)", site.x, site.x, value)
    )


EMITTERS: Mapping[str, Emit] = {"Masking": _masking}
