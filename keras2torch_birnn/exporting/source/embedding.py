"""Source text of Embedding and ReversibleEmbedding."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.code import Expression, call, code, member, symbol
from keras2torch_birnn.exporting.source.dense import parameter
from keras2torch_birnn.exporting.source.emission import (
    Emission,
    Emit,
    Site,
    class_of,
    refuse,
    same_names,
)
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.spec import LayerSpec


def _embedding(layer: LayerSpec, name: str) -> Emission:
    if layer.semantics.get("quantized"):
        raise refuse(layer, "weights of int8")
    rows, columns = map(int, layer.weights["embeddings"].shape)
    return Emission(
        lambda site: code("{}({}.long())", member(name), site.x),
        {name: code("nn.Embedding({}, {})", rows, columns)},
        same_names(name, ["weight"]),
    )


def _reversible(layer: LayerSpec, name: str) -> Emission:
    tied = layer.config["tie_weights"]
    table = parameter(layer.weights["embeddings"])
    cap = layer.config["logit_soft_cap"]

    def called(site: Site) -> Expression:
        if site.kwargs.get("reverse"):
            return call(member(name), site.x, reverse=True)
        return code("{}({}.long())", member(name), site.x)

    return Emission(
        called,
        {name: call(symbol("ReversibleEmbedding"), table, None if tied else table, cap)},
        same_names(name, ["weight"] if tied else ["weight", "reverse_weight"]),
        (class_of(layer, "ReversibleEmbedding"),),
        options=frozenset(SCHEMA[layer.class_name].call_options),
    )


EMITTERS: Mapping[str, Emit] = {"Embedding": _embedding, "ReversibleEmbedding": _reversible}
