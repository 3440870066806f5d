"""Layers that Keras calls preprocessing. Their constants are buffers and follow the dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from keras2torch_birnn.functional.parameters import to_parameter
from keras2torch_birnn.layers.registry import NONE, Converter, Described, of_options, passes_mask
from keras2torch_birnn.schema import normalized_axes
from keras2torch_birnn.schema.preprocessing import lookup_options, lookup_tokens
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


class AutoContrast(Described):
    """Each channel of an image stretched over the whole ``value_range``."""

    value_range: Tensor

    def __init__(self, value_range: Any) -> None:
        super().__init__()
        self.register_buffer("value_range", _single(value_range))
        self.of_bytes = self.value_range.tolist() == [0, 255]

    def forward(self, x: Tensor) -> Tensor:
        """Stretch (B, H, W, C) over H and W, in numbers from 0 to 255 as Keras does."""
        low, high = self.value_range
        y = x if self.of_bytes else (x - low) / (high - low) * 255.0
        least, largest = y.amin((1, 2), keepdim=True), y.amax((1, 2), keepdim=True)
        scale = 255.0 / (largest - least)
        y = (y * scale - least * scale).clamp(0.0, 255.0)
        y = y if self.of_bytes else y / 255.0 * (high - low) + low
        return torch.where(y.isnan(), x, y)  # a channel of one value stays as it is


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


class Discretization(Described):
    """The number of boundaries that x has reached, as an id or encoded."""

    boundaries: Tensor
    tokens: Tensor

    def __init__(self, boundaries: tuple[float, ...] | Tensor, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.register_buffer("boundaries", _single(boundaries))
        self.register_buffer("tokens", numbered_tokens(len(boundaries) + 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...) -> ids of the same shape, or as CategoryEncoding encodes them."""
        given = x.to(self.boundaries.dtype).contiguous()
        ids = torch.bucketize(given, self.boundaries, right=True)
        return ids if self.mode == "int" else encode(ids, self.tokens, self.mode)


class IntegerLookup(Described):
    """Position of a number in a list, as an index or encoded.

    keys, places: the numbers, rising, and their indices. What is not among them has an index of
    its own, or one of ``others`` from ``start`` on, by the remainder; -1 if there is none (Keras
    refuses it then). A masked number has index 0, or is not encoded.
    """

    keys: Tensor
    places: Tensor
    tokens: Tensor

    def __init__(
        self,
        keys: Tensor,
        places: Tensor,
        *,
        mode: str,
        depth: int,
        others: int,
        start: int,
        mask_token: int | None,
    ) -> None:
        super().__init__()
        self.mode, self.depth, self.mask_token = mode, depth, mask_token
        self.others, self.start = others, start
        self.register_buffer("keys", keys)
        self.register_buffer("places", places)
        if mode != "int":
            self.register_buffer("tokens", numbered_tokens(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...) -> indices of the same shape, or as CategoryEncoding encodes them."""
        x = x.long()
        at = torch.searchsorted(self.keys, x.contiguous()).clamp(max=len(self.keys) - 1)
        rest = torch.remainder(x, self.others) + self.start if self.others else -1
        ids = torch.where(self.keys[at] == x, self.places[at], rest)
        if self.mask_token is not None:
            ids = torch.where(x == self.mask_token, 0 if self.mode == "int" else -1, ids)
        return ids if self.mode == "int" else encode(ids, self.tokens, self.mode)


def integer_lookup(layer: LayerSpec) -> nn.Module:
    """Build an IntegerLookup of the list in the configuration."""
    words, first = lookup_tokens(layer.config)
    keys, order = torch.tensor(words).sort()
    return IntegerLookup(keys, order + first, **lookup_options(layer.config))


CONVERTERS: Mapping[str, Converter] = {
    "Normalization": Converter(normalization, passes_mask),
    "Rescaling": Converter(of_options(Rescaling, "scale", "offset"), passes_mask),
    "AutoContrast": Converter(of_options(AutoContrast, "value_range"), NONE),
    "CategoryEncoding": Converter(of_options(CategoryEncoding, "num_tokens", "output_mode"), NONE),
    "Discretization": Converter(of_options(Discretization, "bin_boundaries", "output_mode"), NONE),
    "IntegerLookup": Converter(integer_lookup, NONE),
}
