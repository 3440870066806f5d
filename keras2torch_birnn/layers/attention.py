"""Attention layers. A mask takes 1e9 off scores in float32, or puts -1e9 in their place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from keras2torch_birnn.layers.core import linear
from keras2torch_birnn.layers.registry import Converter, Described, MaskFlow
from keras2torch_birnn.rnn.parameters import to_parameter
from keras2torch_birnn.spec import Array, LayerSpec

# The attended values, and with them the scores where the call asks for these.
Output: TypeAlias = Tensor | tuple[Tensor, Tensor]
LARGE_NEGATIVE = -1e9


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return a causal mask (Tq, Tk): True up to the query's own position."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril()


def masked_softmax(scores: Tensor, allowed: Tensor | None, *, replaces: bool) -> Tensor:
    """Compute the softmax over the last axis of allowed scores.

    A row without any is uniform if -1e9 ``replaces`` the others. If it is added to them, numbers of
    float32 of that size are 64 apart, so only scores up to 32 are the same then.
    """
    if allowed is None:
        return torch.softmax(scores, dim=-1)
    if replaces:
        return torch.softmax(scores.masked_fill(~allowed, LARGE_NEGATIVE), dim=-1)
    hidden = (scores.float() + LARGE_NEGATIVE).to(scores.dtype)
    return torch.softmax(torch.where(allowed, scores, hidden), dim=-1)


def _together(*masks: Tensor | None) -> Tensor | None:
    """Combine masks by "and", broadcast against each other."""
    out: Tensor | None = None
    for mask in masks:
        if mask is not None:
            out = mask if out is None else out & mask
    return out


# ---- Attention, AdditiveAttention ---------------------------------------------------------------


class Attention(Described):
    """Luong's attention: scores are dot products, or a sum of tanh (``score_mode="concat"``).

    The query's mask zeroes outputs, the value's hides values. Axes between B and T stay apart.
    """

    def __init__(self, scale: nn.Parameter | None, *, causal: bool) -> None:
        super().__init__()
        self.scale, self.causal = scale, causal

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Compute scores: (B, Tq, D), (B, Tv, D) -> (B, Tq, Tv)."""
        out = query @ key.transpose(-1, -2)
        return out if self.scale is None else out * self.scale

    def forward(
        self,
        tensors: tuple[Tensor, ...],
        mask: tuple[Tensor | None, ...] | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Output:
        """Attend: [query (B, Tq, D), value (B, Tv, E), key (B, Tv, D) or value] -> (B, Tq, E)."""
        query, value, key = (*tensors, tensors[1])[:3]
        query_mask, value_mask = (None, None) if mask is None else mask[:2]
        scores = self.scores(query, key)
        causal = None
        if self.causal or use_causal_mask:
            causal = causal_mask(scores.shape[-2], scores.shape[-1], scores.device)
        hidden = None if value_mask is None else value_mask.bool().unsqueeze(1)
        weights = masked_softmax(scores, _together(hidden, causal), replaces=False)
        out = weights @ value
        if query_mask is not None:
            out = out * query_mask.bool().unsqueeze(-1)
        return (out, weights) if return_attention_scores else out


class ConcatAttention(Attention):
    """Scores are a weighted sum of tanh(scale (query + key))."""

    def __init__(
        self, scale: nn.Parameter | None, concat_score_weight: nn.Parameter, *, causal: bool
    ) -> None:
        super().__init__(scale, causal=causal)
        self.concat_score_weight = concat_score_weight

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Compute scores: (B, Tq, D), (B, Tv, D) -> (B, Tq, Tv)."""
        both = query.unsqueeze(-2) + key.unsqueeze(-3)
        both = both if self.scale is None else self.scale * both
        return self.concat_score_weight * torch.tanh(both).sum(dim=-1)


class AdditiveAttention(Attention):
    """Bahdanau's attention: scores are the sum of scale tanh(query + key)."""

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Compute scores: (B, Tq, D), (B, Tv, D) -> (B, Tq, Tv)."""
        both = torch.tanh(query.unsqueeze(-2) + key.unsqueeze(-3))
        return both.sum(dim=-1) if self.scale is None else both @ self.scale


def _attention_mask(layer: LayerSpec) -> MaskFlow:
    shapes = layer.input_shape if isinstance(layer.input_shape, tuple) else ()
    refused = None
    if any(isinstance(shape, tuple) and len(shape) > 3 for shape in shapes):
        refused = (
            f"a mask into {layer.class_name} of more than 3 dimensions is not supported: versions "
            "of Keras lay it on the scores in different ways"
        )
    after_query = layer.semantics["mask_after"] == "query"
    return MaskFlow(takes=True, after="first" if after_query else "none", refused=refused)


def _scale(layer: LayerSpec) -> nn.Parameter | None:
    scale = layer.weights["scale"] if layer.config["use_scale"] else None
    return None if scale is None else to_parameter(np.atleast_1d(scale))


def attention(layer: LayerSpec) -> nn.Module:
    """Build an Attention."""
    causal = layer.config["causal"]
    if layer.config["score_mode"] == "concat":
        weight = to_parameter(np.atleast_1d(layer.weights["concat_score_weight"]))
        return ConcatAttention(_scale(layer), weight, causal=causal)
    return Attention(_scale(layer), causal=causal)


def additive_attention(layer: LayerSpec) -> nn.Module:
    """Build an AdditiveAttention."""
    return AdditiveAttention(_scale(layer), causal=layer.config["causal"])


# ---- MultiHeadAttention -------------------------------------------------------------------------

When: TypeAlias = Literal["never", "with scores", "always"]


class Plan(NamedTuple):
    """Options of attention heads, in Keras' words.

    ``output_shape``: what a step of the output has. ``zeros``: when a row with nothing to attend to
    gives zeros, and not the mean of all values. ``adds``: when a mask takes 1e9 off scores, and
    does not replace them.
    """

    heads: int
    output_shape: tuple[int, ...]
    zeros: When
    adds: When = "never"


class MultiHeadAttention(Described):
    """Scaled dot-product attention in heads.

    The outputs of ``query``, ``key`` and ``value``, and the inputs of ``attention_output``, are the
    heads one after another.
    """

    def __init__(
        self,
        query: nn.Linear,
        key: nn.Linear,
        value: nn.Linear,
        attention_output: nn.Linear,
        *,
        plan: Plan,
    ) -> None:
        super().__init__()
        self.query, self.key, self.value = query, key, value
        self.attention_output, self.plan = attention_output, plan

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mask: tuple[Tensor | None, ...] | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Output:
        """Attend: query (B, Tq, D), value, key (B, Tv, E) -> (B, Tq, ...), scores (B, N, Tq, Tv).

        attention_mask: (B, Tq, Tv), or (B, N, Tq, Tv) per head. mask: one of each argument, (B, T).
        """
        plan = self.plan
        q = _heads(self.query(query), plan.heads)
        k = _heads(self.key(value if key is None else key), plan.heads)
        v = _heads(self.value(value), plan.heads)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        places = None
        if use_causal_mask:
            places = causal_mask(scores.shape[2], scores.shape[3], scores.device)
        allowed = _together(*_of_inputs(mask), places, _per_head(attention_mask))
        now = ("always", "with scores") if return_attention_scores else ("always",)
        weights = masked_softmax(scores, allowed, replaces=plan.adds not in now)
        if allowed is not None and plan.zeros in now:
            weights = weights * allowed
        attended = weights @ v
        out: Tensor = self.attention_output(attended.transpose(1, 2).flatten(2))
        out = out.reshape(*out.shape[:2], *plan.output_shape)
        return (out, weights) if return_attention_scores else out


def _heads(x: Tensor, count: int) -> Tensor:
    """Split heads: (B, T, N * W) -> (B, N, T, W)."""
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def _of_inputs(masks: tuple[Tensor | None, ...] | None) -> tuple[Tensor | None, ...]:
    """Return the masks of query, value and key, to broadcast with scores (B, N, Tq, Tv)."""
    query, *others = (masks or (None,))[:3]
    rows = None if query is None else query.bool()[:, None, :, None]
    return rows, *(None if m is None else m.bool()[:, None, None, :] for m in others)


def _per_head(mask: Tensor | None) -> Tensor | None:
    """Add an axis for heads: (B, Tq, Tv) -> (B, 1, Tq, Tv)."""
    return None if mask is None else mask.bool() if mask.dim() > 3 else mask.bool().unsqueeze(-3)


def _heads_mask(layer: LayerSpec) -> MaskFlow:
    ignores = layer.semantics["masking"] == "ignore"
    return MaskFlow(after="none") if ignores else MaskFlow(takes=True, after="first")


def _linear(layer: LayerSpec, name: str, inputs: int = 1) -> nn.Linear:
    """Build a projection: ``kernel`` (in..., out...), ``inputs`` axes in, flattened, transposed."""
    kernel = layer.weights[f"{name}/kernel"]
    flat: Array = kernel.reshape(math.prod(kernel.shape[:inputs]), -1)
    bias = layer.weights[f"{name}/bias"].reshape(-1) if layer.config["use_bias"] else None
    return linear(flat, bias)


def rules_of_rows(layer: LayerSpec) -> tuple[When, When]:
    """Return when a row with nothing to attend to gives zeros, and when 1e9 is taken off scores.

    By hand: where Keras calls its Softmax layer, and no function for it all.
    """
    by_hand: When = "always" if layer.config["dropout"] else "with scores"
    rules: Mapping[str, tuple[When, When]] = {
        "ignore": ("never", "always"),
        "add": ("never", "always"),
        "add by hand": ("never", by_hand),
        "zeros": (by_hand, "never"),
    }
    zeros, adds = rules[layer.semantics["masking"]]
    return zeros, "never" if layer.config.get("softmax_robust_masking") else adds


def multi_head_attention(layer: LayerSpec) -> nn.Module:
    """Build a MultiHeadAttention."""
    zeros, adds = rules_of_rows(layer)
    return MultiHeadAttention(
        _linear(layer, "query"),
        _linear(layer, "key"),
        _linear(layer, "value"),
        _linear(layer, "attention_output", inputs=2),
        plan=Plan(
            layer.config["num_heads"],
            layer.weights["attention_output/kernel"].shape[2:],
            zeros,
            adds,
        ),
    )


CONVERTERS: Mapping[str, Converter] = {
    "Attention": Converter(attention, _attention_mask),
    "AdditiveAttention": Converter(additive_attention, _attention_mask),
    "MultiHeadAttention": Converter(multi_head_attention, _heads_mask),
}
