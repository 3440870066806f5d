"""Embedding, which makes a mask from ids."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from keras2torch_birnn.functional.parameters import to_parameter
from keras2torch_birnn.layers.registry import NONE, Converter, MaskFlow
from keras2torch_birnn.rnn.tensor_checks import check_tensor
from keras2torch_birnn.spec import LayerSpec


class Embedding(nn.Embedding):
    """An ``nn.Embedding`` that also takes ids given as floats, as Keras does."""

    def forward(self, input: Tensor) -> Tensor:
        """Look up ids of any shape -> (..., output_dim). Row 0 is an ordinary row."""
        check_tensor("input", input, torch.int64)
        return super().forward(input.long())


class QuantizedEmbedding(Embedding):
    """Rows of integers from -127 to 127, each with its own ``scale`` (rows,) as divisor."""

    scale: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        """Look up ids of any shape -> (..., output_dim)."""
        return super().forward(input) / self.scale[input.long()][..., None]


def not_zero(x: Tensor, mask: Tensor | None) -> Tensor:
    """Make the mask of Embedding(mask_zero=True): id 0 is padding."""
    return x.ne(0)


def _embedding_mask(layer: LayerSpec) -> MaskFlow:
    return MaskFlow(after=not_zero, makes=True) if layer.config["mask_zero"] else NONE


def embedding(layer: LayerSpec) -> nn.Module:
    """Build an Embedding."""
    table = to_parameter(layer.weights["embeddings"])
    rows, columns = table.shape
    made = QuantizedEmbedding if layer.semantics.get("quantized") else Embedding
    module = made(rows, columns, _weight=table)  # given, so that none is drawn at random
    module.weight = table
    if isinstance(module, QuantizedEmbedding):
        module.scale = to_parameter(layer.weights["embeddings_scale"])
        module.requires_grad_(False)
    return module


CONVERTERS: Mapping[str, Converter] = {
    "Embedding": Converter(embedding, _embedding_mask),
}
