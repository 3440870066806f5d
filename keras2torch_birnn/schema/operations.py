"""Operations of Keras 3 (``keras.ops``), which its files hold beside the layers.

Their arguments come with the call; the first is the tensor. No mask goes in or out.
"""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema.options import axes, flag, optional
from keras2torch_birnn.schema.row import Schema

OPS: Mapping[str, Schema] = {
    "ops.NotEqual": Schema(output=lambda c, s: None),
    "ops.Any": Schema(
        {"axis": optional(axes(None)), "keepdims": flag(False)}, output=lambda c, s: None
    ),
}
