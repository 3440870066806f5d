"""Constants in the place of tensors, as Keras 3 writes them: ``__numpy__`` and ``__tensor__``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras2torch_birnn.errors import UnsupportedOptionError, invalid, printable
from keras2torch_birnn.limits import MAX_CONSTANT_DEPTH, MAX_INT64
from keras2torch_birnn.readers.operations.values import dtype_kind
from keras2torch_birnn.spec import Constant

CLASSES = ("__numpy__", "__tensor__")


def read_constant(value: Mapping[str, Any], place: str) -> Constant | float:
    """Parse a constant; a single float becomes a number.

    Floats are rounded to float32, in which Keras computes with them, unless the file says float64.

    Raises:
        InvalidModelFileError: not numbers in equal rows; UnsupportedOptionError: such a dtype.
    """
    config = value.get("config")
    config = config if isinstance(config, Mapping) else {}
    try:
        declared = dtype_kind(config.get("dtype"))
    except UnsupportedOptionError as error:
        error.place = place
        raise
    flat: list[Any] = []
    shape = _flatten(config.get("value"), flat, 0, place)
    if declared == "float" or (
        declared is None and any(isinstance(number, float) for number in flat)
    ):
        if str(config.get("dtype")).removeprefix("tf.") != "float64":
            flat = np.asarray(flat, dtype=np.float32).astype(float).tolist()
        if shape == ():
            return float(flat[0])
    return Constant(tuple(flat), shape, declared)


def _flatten(value: Any, flat: list[Any], depth: int, place: str) -> tuple[int, ...]:
    if isinstance(value, bool | int | float):
        if isinstance(value, int) and abs(value) > MAX_INT64:
            raise invalid(f"a constant with {printable(value)}", place)
        flat.append(value)
        return ()
    if not isinstance(value, list | tuple) or depth > MAX_CONSTANT_DEPTH:
        raise invalid(f"a constant of {printable(repr(value))}, numbers are expected", place)
    shapes = {_flatten(part, flat, depth + 1, place) for part in value}
    if len(shapes) > 1:
        raise invalid("a constant of unequal rows", place)
    return (len(value), *(shapes.pop() if shapes else ()))
