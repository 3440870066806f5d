"""Embedding."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema.options import flag, size
from keras2torch_birnn.schema.row import Config, Schema, WeightShapes
from keras2torch_birnn.spec import Shape


def _embedding_weights(config: Config, shape: Shape | None) -> WeightShapes:
    return {"embeddings": (config["input_dim"], config["output_dim"])}


def _embedding_output(config: Config, shape: Shape | None) -> Shape | None:
    return None if shape is None else (*shape, config["output_dim"])


LAYERS: Mapping[str, Schema] = {
    "Embedding": Schema(
        {"input_dim": size(), "output_dim": size(), "mask_zero": flag(False)},
        _embedding_weights,
        _embedding_output,
    ),
}
