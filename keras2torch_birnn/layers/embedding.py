"""Embedding and ReversibleEmbedding, which make a mask from ids."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.functional.parameters import to_parameter
from keras2torch_birnn.layers.input_casts import to_ids
from keras2torch_birnn.layers.registry import (
    ALONE,
    NONE,
    Around,
    Converter,
    Described,
    MaskFlow,
    Step,
)
from keras2torch_birnn.spec import LayerSpec


class QuantizedEmbedding(Described):
    """Rows of integers from -127 to 127, each with its own ``scale`` (rows,) as divisor."""

    def __init__(self, weight: nn.Parameter, scale: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.scale = weight, scale
        self.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """Look up ids of any shape -> (..., output_dim)."""
        return functional.embedding(input, self.weight) / self.scale[input][..., None]


class ReversibleEmbedding(Described):
    """An embedding that also maps features back to a score for each id.

    ``weight`` (rows, columns); ``reverse_weight``, of the same shape, is that of the way back, None
    if it is ``weight``. ``cap``: the scores are bent to stay below it; None if they are not.
    """

    def __init__(
        self, weight: nn.Parameter, reverse_weight: nn.Parameter | None, cap: float | None
    ) -> None:
        super().__init__()
        self.weight, self.reverse_weight, self.cap = weight, reverse_weight, cap

    def forward(self, input: Tensor, reverse: bool = False) -> Tensor:
        """Look up ids of any shape -> (..., columns); reversed (..., columns) -> (..., rows)."""
        if not reverse:
            return functional.embedding(input, self.weight)
        weight = self.weight if self.reverse_weight is None else self.reverse_weight
        scores = functional.linear(input.to(weight.dtype), weight)
        return scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap


def not_zero(x: Tensor, mask: Tensor | None) -> Tensor:
    """Make the mask of Embedding(mask_zero=True): id 0 is padding."""
    return x.ne(0)


def _embedding_mask(layer: LayerSpec) -> MaskFlow:
    makes = layer.config["mask_zero"] and not layer.config.get("reverse")
    return MaskFlow(after=not_zero, makes=True) if makes else NONE


def embedding(layer: LayerSpec) -> nn.Module:
    """Build an Embedding, an nn.Embedding; row 0 is an ordinary row. Ids may come as floats."""
    table = to_parameter(layer.weights["embeddings"])
    if layer.semantics.get("quantized"):
        return QuantizedEmbedding(table, to_parameter(layer.weights["embeddings_scale"]))
    rows, columns = table.shape
    module = nn.Embedding(rows, columns, _weight=table)  # given, so that none is drawn at random
    module.weight = table
    return module


def reversible_embedding(layer: LayerSpec) -> nn.Module:
    """Turn ``reverse_embeddings`` (columns, rows) -> ``reverse_weight`` (rows, columns)."""
    back = layer.weights.get("reverse_embeddings")
    return ReversibleEmbedding(
        to_parameter(layer.weights["embeddings"]),
        None if back is None else to_parameter(back.T),
        layer.config["logit_soft_cap"],
    )


def _of_ids(layer: LayerSpec) -> Around:
    return ALONE if layer.config.get("reverse") else Around(before=Step(to_ids))


CONVERTERS: Mapping[str, Converter] = {
    "ReversibleEmbedding": Converter(reversible_embedding, _embedding_mask, _of_ids),
    "Embedding": Converter(embedding, _embedding_mask, _of_ids),
}
