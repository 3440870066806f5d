"""Source text of Hashing."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.emission import Emission, Emit
from keras2torch_birnn.exporting.source.preprocessing import encoder
from keras2torch_birnn.spec import LayerSpec


def _hashing(layer: LayerSpec, name: str) -> Emission:
    config = layer.config
    options = [config[key] for key in ("num_bins", "mask_value", "salt", "output_mode")]
    encodes = config["output_mode"] != "int"
    return encoder(layer, name, options, ["tokens"] if encodes else [])


EMITTERS: Mapping[str, Emit] = {"Hashing": _hashing}
