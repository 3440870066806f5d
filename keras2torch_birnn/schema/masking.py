"""Masking."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema.options import number
from keras2torch_birnn.schema.row import Schema, known

LAYERS: Mapping[str, Schema] = {
    "Masking": Schema({"mask_value": number(0.0)}, output=lambda c, s: known(s, least_rank=2)),
}
