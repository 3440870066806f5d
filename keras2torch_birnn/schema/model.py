"""Models and their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.limits import MAX_RANK
from keras2torch_birnn.schema.options import BadOptionError, Option, optional, size
from keras2torch_birnn.schema.row import Schema


def _shape(value: Any) -> tuple[int | None, ...] | None:
    """Parse an input's shape, with the batch; None where the file does not tell."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_RANK:
        raise BadOptionError("a list of sizes is expected")
    return tuple(optional(size()).parse(part) for part in value)


def _dtype(value: Any) -> Any:
    """Check the dtype of an input: a name, or a policy of Keras 3."""
    if value is None or isinstance(value, str | Mapping):
        return value
    raise BadOptionError("the name of a dtype is expected")


LAYERS: Mapping[str, Schema] = {
    "InputLayer": Schema(
        {"shape": Option(None, _shape), "dtype": Option("float32", _dtype)},
        renamed={"batch_input_shape": "shape", "batch_shape": "shape"},
        refused=("sparse=True", "ragged=True"),
    ),
    "Sequential": Schema(),
    "Functional": Schema(),
}
