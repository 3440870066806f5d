"""Embedding, which makes a mask from ids."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from keras2torch_birnn.layers.input_casts import to_ids
from keras2torch_birnn.layers.registry import (
    NONE,
    Around,
    Converter,
    MaskFlow,
    Step,
)
from keras2torch_birnn.rnn.parameters import to_parameter
from keras2torch_birnn.spec import LayerSpec


def not_zero(x: Tensor, mask: Tensor | None) -> Tensor:
    """Make the mask of Embedding(mask_zero=True): id 0 is padding."""
    return x.ne(0)


def _embedding_mask(layer: LayerSpec) -> MaskFlow:
    return MaskFlow(after=not_zero, makes=True) if layer.config["mask_zero"] else NONE


def embedding(layer: LayerSpec) -> nn.Module:
    """Build an Embedding, an nn.Embedding; row 0 is an ordinary row. Ids may come as floats."""
    table = to_parameter(layer.weights["embeddings"])
    rows, columns = table.shape
    module = nn.Embedding(rows, columns, _weight=table)  # given, so that none is drawn at random
    module.weight = table
    return module


CONVERTERS: Mapping[str, Converter] = {
    "Embedding": Converter(embedding, _embedding_mask, lambda _: Around(before=Step(to_ids))),
}
