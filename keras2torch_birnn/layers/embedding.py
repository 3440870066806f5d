"""Where masks begin: Embedding and Masking."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from keras2torch_birnn.layers.registry import NONE, MaskFlow, converts
from keras2torch_birnn.rnn.checked import check_tensor
from keras2torch_birnn.rnn.parameters import parameter
from keras2torch_birnn.spec import LayerSpec


class Embedding(nn.Embedding):
    """An ``nn.Embedding`` that also takes ids given as floats, as Keras does."""

    def forward(self, input: Tensor) -> Tensor:
        """Ids of any shape -> the shape and (output_dim,). Row 0 is an ordinary row."""
        check_tensor("input", input, torch.int64)
        return super().forward(input.long())


class QuantizedEmbedding(Embedding):
    """Rows of whole numbers from -127 to 127, each with its own ``scale`` (rows,) to divide by."""

    scale: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        """Ids of any shape -> the shape and (output_dim,)."""
        return super().forward(input) / self.scale[input.long()][..., None]


def not_zero(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mask of Embedding(mask_zero=True): id 0 is padding."""
    return x.ne(0)


def _embedding_mask(layer: LayerSpec) -> MaskFlow:
    return MaskFlow(after=not_zero, makes=True) if layer.config["mask_zero"] else NONE


@converts("Embedding", mask=_embedding_mask)
def embedding(layer: LayerSpec) -> nn.Module:
    """Build an Embedding."""
    table = parameter(layer.weights["embeddings"])
    rows, columns = table.shape
    made = QuantizedEmbedding if layer.config.get("quantized") else Embedding
    module = made(rows, columns, _weight=table)  # given, so that none is drawn at random
    module.weight = table
    if isinstance(module, QuantizedEmbedding):
        module.scale = parameter(layer.weights["embeddings_scale"])
        module.requires_grad_(False)
    return module


def differs(x: Tensor, mask: Tensor | None, value: float) -> Tensor:
    """Mask of Masking: a step counts if any feature differs from ``value``."""
    return x.ne(value).any(dim=-1)


class Masking(nn.Module):
    """Sets steps to zero where every feature is ``mask_value``; the mask says which."""

    def __init__(self, mask_value: float) -> None:
        super().__init__()
        self.mask_value = mask_value

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., F) -> the same shape."""
        return x * differs(x, None, self.mask_value)[..., None].to(x.dtype)

    def extra_repr(self) -> str:
        """The value."""
        return f"mask_value={self.mask_value}"


def _single(layer: LayerSpec) -> float:
    """The value as Keras compares it: in float32, whatever the model computes in."""
    return float(np.float32(layer.config["mask_value"]))


def _masking_mask(layer: LayerSpec) -> MaskFlow:
    return MaskFlow(after=differs, makes=True, constants={"value": _single(layer)})


@converts("Masking", mask=_masking_mask)
def masking(layer: LayerSpec) -> nn.Module:
    """Build a Masking."""
    return Masking(_single(layer))
