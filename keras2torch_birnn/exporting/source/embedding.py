"""Source text of Embedding."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.code import code, member
from keras2torch_birnn.exporting.source.emission import Emission, Emit, refuse, same_names
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


EMITTERS: Mapping[str, Emit] = {"Embedding": _embedding}
