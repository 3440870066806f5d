"""Models, and their inputs."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema.options import Option
from keras2torch_birnn.schema.row import Schema

LAYERS: Mapping[str, Schema] = {
    "InputLayer": Schema(
        {"shape": Option(None, lambda shape: shape), "dtype": Option("float32", lambda d: d)},
        renamed={"batch_input_shape": "shape", "batch_shape": "shape"},
        refused=("sparse=True", "ragged=True"),
    ),
    "Sequential": Schema(),
    "Functional": Schema(aliases=("Model",)),
}
