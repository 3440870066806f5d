"""Embedding and ReversibleEmbedding."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema.options import Option, choice, flag, number, optional, size
from keras2torch_birnn.schema.row import Config, Schema, ShapeError, WeightShapes
from keras2torch_birnn.spec import Shape

# Layers that look ids up, and may make a mask of them.
EMBEDDINGS = ("Embedding", "ReversibleEmbedding")


def _embedding_weights(config: Config, shape: Shape | None) -> WeightShapes:
    rows: Shape = (config["input_dim"],)
    table: dict[str, Shape] = {"embeddings": (*rows, config["output_dim"])}
    return {**table, "embeddings_scale": rows} if config.get("quantized") else table


def _embedding_output(config: Config, shape: Shape | None) -> Shape | None:
    return None if shape is None else (*shape, config["output_dim"])


def _reversible_weights(config: Config, shape: Shape | None) -> WeightShapes:
    table = _embedding_weights(config, shape)
    if config["tie_weights"]:
        return table
    return {**table, "reverse_embeddings": (config["output_dim"], config["input_dim"])}


def _reversible_output(config: Config, shape: Shape | None) -> Shape | None:
    if shape is None or not config.get("reverse"):
        return _embedding_output(config, shape)
    if not shape or shape[-1] not in (None, config["output_dim"]):
        raise ShapeError(f"{config['output_dim']} features are expected, found {list(shape)}")
    return (*shape[:-1], config["input_dim"])


_TABLE: Mapping[str, Option] = {
    "input_dim": size(),
    "output_dim": size(),
    "mask_zero": flag(False),
}

LAYERS: Mapping[str, Schema] = {
    "Embedding": Schema(
        _TABLE,
        _embedding_weights,
        _embedding_output,
        semantics={"quantized": choice(None, None, "weights")},
    ),
    "ReversibleEmbedding": Schema(
        {
            **_TABLE,
            "tie_weights": flag(True),
            "reverse_dtype": choice(None, None, "float32", "float64", "float16", "bfloat16"),
            "logit_soft_cap": optional(number()),
        },
        _reversible_weights,
        _reversible_output,
        call_options={"reverse": flag(False)},
    ),
}
