"""Layers that Keras calls preprocessing. Their constants are buffers and follow the dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from keras2torch_birnn.layers.registry import (
    NONE,
    Converter,
    Described,
    leave_alone,
    of_options,
    passes_mask,
)
from keras2torch_birnn.rnn.parameters import to_parameter
from keras2torch_birnn.schema import AUGMENTATION, normalized_axes
from keras2torch_birnn.spec import LayerSpec


def _single(value: Any) -> Tensor:
    """Round a constant to float32, as Keras does."""
    return torch.as_tensor(value, dtype=torch.float64).float()


def numbered_tokens(count: int) -> Tensor:
    """Return the tokens 0 to count - 1 in the dtype of the outputs."""
    return torch.arange(count, dtype=torch.float32)


class Normalization(Described):
    """(x - mean) / deviation, or with ``invert`` mean + x deviation; a deviation is 1e-7 at least.

    ``mean`` and ``variance`` have the input's sizes on the axes they belong to, else 1.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, mean: Tensor, variance: Tensor, *, invert: bool) -> None:
        super().__init__()
        self.invert = invert
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it for any shape; integers become floats."""
        deviation = self.variance.sqrt().clamp(min=1e-7)
        x = x.to(self.mean.dtype)
        return self.mean + x * deviation if self.invert else (x - self.mean) / deviation


def normalization(layer: LayerSpec) -> nn.Module:
    """Build a Normalization of what ``adapt`` found (weights) or of what the config says.

    Numbers of the config are for the last of the axes, as NumPy broadcasts.
    """
    config = layer.config
    rank = len(layer.input_shape) if layer.input_shape is not None else len(config["axis"]) + 1
    axes = normalized_axes(config, rank)

    def placed(values: Tensor) -> Tensor:
        """Reshape ``values``, one axis per axis of the layer, to broadcast with the input."""
        sizes = [1] * (len(axes) - values.dim()) + list(values.shape)
        return values.reshape([sizes[axes.index(i)] if i in axes else 1 for i in range(rank)])

    found = {
        name: placed(
            to_parameter(layer.weights[name]).data
            if name in layer.weights
            else _single(config[name])
        )
        for name in ("mean", "variance")
    }
    return Normalization(found["mean"], found["variance"], invert=config["invert"])


class Rescaling(Described):
    """x scale + offset: numbers, or lists of them for the last axes."""

    scale: Tensor
    offset: Tensor

    def __init__(self, scale: Any, offset: Any) -> None:
        super().__init__()
        self.register_buffer("scale", _single(scale))
        self.register_buffer("offset", _single(offset))

    def forward(self, x: Tensor) -> Tensor:
        """Compute it for any shape; integers become floats."""
        return x.to(self.scale.dtype) * self.scale + self.offset


def encode(ids: Tensor, tokens: Tensor, mode: str, weights: Tensor | None = None) -> Tensor:
    """Encode ids over all ``tokens``: one-hot rows, or per sample which occur or how often.

    An id that is no token gives zeros. ``weights``: how much each id counts.
    """
    if mode == "one_hot" and ids.dim() > 1 and ids.shape[-1] == 1:
        ids = ids.squeeze(-1)
    hits = ids.unsqueeze(-1).eq(tokens)
    if weights is not None:
        return (hits * weights.to(tokens.dtype).unsqueeze(-1)).sum(dim=-2)
    if mode == "multi_hot":
        hits = hits.any(dim=-2)
    return hits.sum(dim=-2, dtype=tokens.dtype) if mode == "count" else hits.to(tokens.dtype)


class CategoryEncoding(Described):
    """Ids as vectors of zeros and ones, or of counts."""

    tokens: Tensor

    def __init__(self, num_tokens: int, mode: str) -> None:
        super().__init__()
        self.num_tokens, self.mode = num_tokens, mode
        self.register_buffer("tokens", numbered_tokens(num_tokens))

    def forward(self, x: Tensor, count_weights: Tensor | None = None) -> Tensor:
        """Encode one_hot (B, ..., 1 or T) -> (B, ..., tokens); else (B, T) -> (B, tokens)."""
        return encode(x.long(), self.tokens, self.mode, count_weights)


CONVERTERS: Mapping[str, Converter] = {
    "Normalization": Converter(normalization, passes_mask),
    "Rescaling": Converter(of_options(Rescaling, "scale", "offset"), passes_mask),
    "CategoryEncoding": Converter(of_options(CategoryEncoding, "num_tokens", "output_mode"), NONE),
    **dict.fromkeys(AUGMENTATION, Converter(leave_alone, NONE)),
}
