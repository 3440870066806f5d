"""Attention in the letters of its papers: b batch, q query steps, k key steps, n heads, d width.

Sources: ``keras/src/layers/attention/`` of tf.keras 2.15 and Keras 3.0 to 3.15.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras2torch_birnn.reference.context import (
    Context,
    Equation,
    Result,
    empty_rows_are_zero,
    heads_use_masks,
    mask_of_lists,
    masked_scores_are_replaced,
)
from keras2torch_birnn.spec import Array, LayerSpec, Structure

MASKED_SCORE = -1e9


def _softmax(scores: Array, allowed: Array | None, *, replaced: bool = False) -> Array:
    if allowed is not None:
        # Keras computes in float32, where -1e9 leaves multiples of 64.
        reduced = np.float32(MASKED_SCORE) + (0 if replaced else scores.astype(np.float32))
        scores = np.where(allowed, scores, reduced)
    powers: Array = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total: Array = powers.sum(axis=-1, keepdims=True)
    return np.divide(powers, total)


def _earlier(queries: int, keys: int) -> Array:
    """Compute ``_compute_causal_mask``: row number >= column number."""
    return np.arange(queries)[:, np.newaxis] >= np.arange(keys)[np.newaxis, :]


def _and(*masks: Array | None) -> Array | None:
    found = [m for m in masks if m is not None]
    if not found:
        return None
    out = found[0]
    for m in found[1:]:
        out = out & m
    return out


def _query_value_key(inputs: Structure, context: Context) -> tuple[Array, Array, Array]:
    """Return the three tensors of a call; the key is the value unless it is given."""
    query, value = (context.number(x) for x in inputs[:2])
    given = inputs[2] if len(inputs) > 2 else None
    return query, value, value if given is None else context.number(given)


def _bool(mask: Structure) -> Array | None:
    return None if mask is None else np.asarray(mask).astype(bool)


# ---- Attention, AdditiveAttention ---------------------------------------------------------------


def attention(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
    """Compute ``Attention.call``: inputs are (query, value) or (query, value, key).

    Axes between batch and steps stay apart; there no mask is known.
    """
    config = layer.config
    query, value, key = _query_value_key(inputs, context)
    scale = context.weight(layer, "scale") if config["use_scale"] else 1
    if layer.class_name == "AdditiveAttention":
        sums = np.tanh(query[..., :, np.newaxis, :] + key[..., np.newaxis, :, :])
        scores = np.sum(scale * sums, axis=-1)
    elif config["score_mode"] == "concat":
        sums = np.tanh(scale * (query[..., :, np.newaxis, :] + key[..., np.newaxis, :, :]))
        scores = context.weight(layer, "concat_score_weight") * np.sum(sums, axis=-1)
    else:
        scores = scale * np.einsum("...qd,...kd->...qk", query, key)
    query_mask, value_mask = (None, None) if mask is None else map(_bool, mask[:2])
    if query.ndim > 3 and (query_mask is not None or value_mask is not None):
        raise ValueError("a mask into an Attention of more than 3 dimensions is not known")
    causal = config["causal"] or context.call_options.get("use_causal_mask")
    weights = _softmax(
        scores,
        _and(
            None if value_mask is None else value_mask[:, np.newaxis, :],
            _earlier(*scores.shape[-2:]) if causal else None,
        ),
    )
    y = np.einsum("...qk,...ke->...qe", weights, value)
    if query_mask is not None:
        y = np.where(query_mask[..., np.newaxis], y, 0)
    out_mask = None if mask_of_lists(context.generation) == "none" else query_mask
    if context.call_options.get("return_attention_scores"):
        return (y, weights), out_mask
    return y, out_mask


# ---- MultiHeadAttention -------------------------------------------------------------------------


def _projected(layer: LayerSpec, name: str, x: Array, context: Context) -> Array:
    """Compute ``EinsumDense``: (b, ..., d) -> (b, ..., n, w)."""
    y: Array = np.einsum("...d,dnw->...nw", x, context.weight(layer, f"{name}/kernel"))
    return y + context.weight(layer, f"{name}/bias") if layer.config["use_bias"] else y


def _output(layer: LayerSpec, attended: Array, context: Context) -> Array:
    """Compute what follows the attention: the projection of all heads."""
    y: Array = np.tensordot(attended, context.weight(layer, "attention_output/kernel"), axes=2)
    return y + context.weight(layer, "attention_output/bias") if layer.config["use_bias"] else y


def _mask_of_scores(
    layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Array | None:
    """Compute ``_compute_attention_mask``: (b, n, q, k) or what broadcasts to it."""
    queries, keys = inputs[0].shape[1], inputs[1].shape[1]
    found: list[Array | None] = []
    if mask is not None and heads_use_masks(context.generation):
        query_mask, *others = (_bool(m) for m in mask[:3])
        found.append(None if query_mask is None else query_mask[:, np.newaxis, :, np.newaxis])
        found += [m[:, np.newaxis, np.newaxis, :] for m in others if m is not None]
    if context.call_options.get("use_causal_mask"):
        found.append(_earlier(queries, keys))
    if len(inputs) > 3:
        given = np.asarray(inputs[3]).astype(bool)
        found.append(given if given.ndim > 3 else np.expand_dims(given, -3))
    return _and(*found)


def heads(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
    """Compute ``MultiHeadAttention.call`` of (query, value, key, mask)."""
    query, value, key = _query_value_key(inputs, context)
    q = _projected(layer, "query", query, context)
    k = _projected(layer, "key", key, context)
    v = _projected(layer, "value", value, context)
    allowed = _mask_of_scores(layer, inputs, mask, context)
    with_scores = bool(context.call_options.get("return_attention_scores"))
    by_hand = with_scores or layer.config["dropout"] > 0
    replaced = layer.config.get("softmax_robust_masking") or masked_scores_are_replaced(
        context.generation, by_hand=by_hand
    )
    scores = np.einsum("bqnw,bknw->bnqk", q, k) / np.sqrt(q.shape[-1])
    weights = _softmax(scores, allowed, replaced=bool(replaced))
    if allowed is not None and empty_rows_are_zero(context.generation, by_hand=by_hand):
        weights = np.where(allowed, weights, 0)
    attended = np.einsum("bnqk,bknw->bqnw", weights, v)
    y = _output(layer, attended, context)
    uses_masks = mask is not None and heads_use_masks(context.generation)
    out_mask = mask[0] if uses_masks else None
    return ((y, weights) if with_scores else y), out_mask


EQUATIONS: Mapping[str, Equation] = {
    "Attention": attention,
    "AdditiveAttention": attention,
    "MultiHeadAttention": heads,
}
