"""Operations of Keras 3 (``keras.ops``), which its files hold beside the layers.

Their arguments come with the call; the first is the tensor. No mask goes in or out.
"""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema.options import axes, choice, flag, optional, size
from keras2torch_birnn.schema.row import Schema

# Of the bool masks that Keras makes of masks; None: the dtype of the tensor.
_DTYPE = choice(None, None, "bool")

OPS: Mapping[str, Schema] = {
    "ops.NotEqual": Schema(output=lambda c, s: None),
    "ops.Any": Schema(
        {"axis": optional(axes(None)), "keepdims": flag(False)}, output=lambda c, s: None
    ),
    "ops.LogicalOr": Schema(output=lambda c, s: None),
    "ops.ConvertToTensor": Schema(
        {"dtype": choice(None, None), "ragged": choice(None, None, False)}
    ),
    "ops.ExpandDims": Schema({"axis": size(least=-32)}, output=lambda c, s: None),
    "ops.ZerosLike": Schema({"dtype": _DTYPE}),
    "ops.OnesLike": Schema({"dtype": _DTYPE}),
    "ops.Concatenate": Schema({"axis": size(-1, least=-32)}, output=lambda c, s: None),
}
