"""Hashing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.schema.options import BadOptionError, Option, choice, optional, size
from keras2torch_birnn.schema.preprocessing import ENCODINGS, ids_output, output_mode, whole_number
from keras2torch_birnn.schema.row import Schema

# What TensorFlow up to 2.5 writes for a layer without salt.
_NO_SALT = (0xDECAFCAFFE, 0xDECAFCAFFE)


def _salt(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    values = value if isinstance(value, list | tuple) else [value, value]
    if len(values) != 2:
        raise BadOptionError("a whole number or two are expected")
    first, second = (whole_number(part) for part in values)
    if (first, second) == _NO_SALT:
        raise BadOptionError("TensorFlow up to 2.5 writes this for layers without salt, too")
    return first, second


LAYERS: Mapping[str, Schema] = {
    # whole numbers alone: no text reaches a model in torch
    "Hashing": Schema(
        {
            "num_bins": size(),
            "mask_value": optional(Option(None, whole_number)),
            "salt": Option(None, _salt),
            "output_mode": output_mode("int", ("int", *ENCODINGS)),
            "sparse": choice(False, False),
        },
        output=ids_output(lambda config: int(config["num_bins"])),
        refused=("text", "sparse=True", "several tensors (tf.keras 2.4)"),
    ),
}
