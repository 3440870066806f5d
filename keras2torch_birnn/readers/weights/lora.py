"""Low-rank updates (LoRA) of a layer's weight, which Keras 3 writes beside it into ``.h5`` files.

The layer computes with ``kernel + alpha / rank * (a @ b)``. A v3 store holds that sum alone.
Source: Keras 3.15 ``enable_lora``, ``kernel``, ``save_own_variables`` of ``layers/core/dense.py``
(``einsum_dense.py``, ``embedding.py``) and ``layers/convolutional/base_conv.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras2torch_birnn.errors import UnsupportedOptionError, printable
from keras2torch_birnn.limits import MAX_SIZE
from keras2torch_birnn.spec import LayerSpec, Shape

_AS_KERAS = "save the model as .keras, which holds the sum of the weight and its update"
# In a layer's semantics until its weights are read: rank and factor.
LORA = "lora"
_UPDATED = ("kernel", "embeddings")


def parse_lora(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return what a layer's semantics say of its low-rank update, nothing without one.

    Raises:
        UnsupportedOptionError: rank and alpha are no numbers, or the weight is quantized.
    """
    rank = config.get("lora_rank")
    if rank is None:
        return {}
    alpha = config.get("lora_alpha", rank)  # the first versions have no other
    numbers = type(rank) is int and type(alpha) in (int, float)
    if not numbers or not 0 < rank <= MAX_SIZE or not math.isfinite(alpha):
        shown = f"lora_rank={printable(repr(rank))}, lora_alpha={printable(repr(alpha))}"
        raise UnsupportedOptionError(f"{shown} is not supported", _AS_KERAS, place=place)
    return {LORA: {"rank": rank, "factor": alpha / rank}}


def update_shapes(layer: LayerSpec, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return name -> shape of both factors of a layer's update, none without one."""
    lora = layer.semantics.get(LORA)
    weight = next((name for name in _UPDATED if name in shapes), None)
    if lora is None or weight is None:
        return {}
    *rows, columns = shapes[weight]
    return {
        f"lora_{weight}_a": (*rows, lora["rank"]),
        f"lora_{weight}_b": (lora["rank"], columns),
    }


def is_updated(name: str, weights: Mapping[str, Any]) -> bool:
    """Tell whether a weight has an update among the weights of its layer, so it is frozen."""
    return f"lora_{name}_a" in weights


def add_update(layer: LayerSpec, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of a layer with the update added to the one that it is of.

    Raises:
        UnsupportedOptionError: that one is quantized.
    """
    found = {name: value for name, value in weights.items() if not name.startswith("lora_")}
    for name in [name for name in found if is_updated(name, weights)]:
        if layer.semantics.get("quantized"):
            raise UnsupportedOptionError(
                "LoRA of quantized weights is not supported in this kind of file",
                _AS_KERAS,
                place=layer.place,
            )
        product = np.matmul(weights[f"lora_{name}_a"], weights[f"lora_{name}_b"])
        found[name] = found[name] + layer.semantics[LORA]["factor"] * product
    return found
