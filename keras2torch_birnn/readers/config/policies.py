"""Dtype policies of layers, and the dtype of the converted model.

A converted model has one float dtype: float64 if any weight of the file has it, else float32.
Keras' half-precision policies round every step to 8 or 11 bits; that is not reproduced, as float32
is closer to the exact result.
Sources: tf.keras 2.15 ``mixed_precision/policy.py``, Keras 3.15 ``dtype_policies``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras2torch_birnn.errors import printable
from keras2torch_birnn.spec import Array

# Old Embedding layers carry the dtype of their input in this place.
_PLAIN = (None, "float32", "float64", "int32", "int64")
_HALF = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16")


_INSTEAD = ": computed in float32, which is more exact"


@dataclass(frozen=True)
class DtypePolicy:
    """Meaning of a policy: a float dtype, a note for the user, or the reason of a refusal."""

    note: str = ""
    refusal: str = ""
    floats: str = ""


def read_policy(value: Any) -> DtypePolicy:
    """Parse a policy: its name, ``{"class_name": ..., "config": {"name": ...}}``, or None."""
    name = value
    if isinstance(value, Mapping):
        config = value.get("config")
        config = config if isinstance(config, Mapping) else {}
        name = config.get("name", value)
    if name in _PLAIN:
        return DtypePolicy(floats=name if name in ("float32", "float64") else "")
    if name in _HALF:
        return DtypePolicy(note=f"the file asks for {name}{_INSTEAD}")
    return DtypePolicy(refusal=f"dtype {printable(name)} is not supported: float32 is expected")


def notes_of_half_precision(notes: Iterable[str]) -> tuple[str, ...]:
    """Return those of a model's notes that are about policies of half precision."""
    return tuple(note for note in notes if note.endswith(_INSTEAD))


def mixture_note(floats: set[str], weights: np.dtype[Any]) -> list[str]:
    """Return a note if layers mix float32 and float64; half precision has its own note."""
    if floats < {"float32", "float64"}:
        return []
    return [f"layers of float32 and of float64: all of the model is computed in {weights}"]


def common_dtype(arrays: list[Array]) -> np.dtype[Any]:
    """Return the float dtype of a model with these weights."""
    double = any(array.dtype == np.float64 for array in arrays)
    return np.dtype(np.float64 if double else np.float32)
