"""Embedding, which makes a mask from ids."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.functional.parameters import to_parameter
from keras2torch_birnn.layers.input_casts import to_ids
from keras2torch_birnn.layers.registry import (
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


def not_zero(x: Tensor, mask: Tensor | None) -> Tensor:
    """Make the mask of Embedding(mask_zero=True): id 0 is padding."""
    return x.ne(0)


def _embedding_mask(layer: LayerSpec) -> MaskFlow:
    return MaskFlow(after=not_zero, makes=True) if layer.config["mask_zero"] else NONE


def embedding(layer: LayerSpec) -> nn.Module:
    """Build an Embedding, an nn.Embedding; row 0 is an ordinary row. Ids may come as floats."""
    table = to_parameter(layer.weights["embeddings"])
    if layer.semantics.get("quantized"):
        return QuantizedEmbedding(table, to_parameter(layer.weights["embeddings_scale"]))
    rows, columns = table.shape
    module = nn.Embedding(rows, columns, _weight=table)  # given, so that none is drawn at random
    module.weight = table
    return module


CONVERTERS: Mapping[str, Converter] = {
    "Embedding": Converter(embedding, _embedding_mask, lambda _: Around(before=Step(to_ids))),
}
