"""Source text of attention layers: the modules of ``layers.attention``, copied."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras2torch_birnn.exporting.source.activation import TORCH
from keras2torch_birnn.exporting.source.dense import linear
from keras2torch_birnn.exporting.source.emission import (
    Called,
    Emission,
    Emit,
    Helper,
    Site,
    Value,
    arguments,
    literal,
)
from keras2torch_birnn.layers.attention import rules_of_rows
from keras2torch_birnn.spec import LayerSpec

_LAYERS = "keras2torch_birnn.layers.attention"


def _text(value: Value) -> str:
    if isinstance(value, tuple):
        parts = ", ".join(_text(one) for one in value)
        return f"({parts},)" if len(value) == 1 else f"({parts})"
    return value if isinstance(value, str) else literal(value)


def _call(site: Site) -> str | Called:
    named = dict(site.kwargs)
    if site.mask is not None:
        named["mask"] = site.mask
    parts = [*map(_text, site.args), *(f"{key}={_text(value)}" for key, value in named.items())]
    text = f"self.{site.name}({', '.join(parts)})"
    if not named.get("return_attention_scores"):
        return text
    scores = site.fresh("scores")
    return Called((f"{site.out}, {scores} = {text}",), (site.out, scores))


def _parameter(layer: LayerSpec, key: str) -> str:
    shape = tuple(map(int, np.atleast_1d(layer.weights[key]).shape))
    return f"nn.Parameter(torch.zeros({literal(shape)}))"


def _attention(layer: LayerSpec, name: str) -> Emission:
    concat = layer.config.get("score_mode") == "concat"
    kind = "AdditiveAttention" if layer.class_name == "AdditiveAttention" else "Attention"
    kind = "ConcatAttention" if concat else kind
    values, state = [], {}
    if layer.config["use_scale"]:
        values.append(_parameter(layer, "scale"))
        state["scale"] = f"{name}.scale"
    else:
        values.append("None")
    if concat:
        values.append(_parameter(layer, "concat_score_weight"))
        state["concat_score_weight"] = f"{name}.concat_score_weight"
    causal = literal(bool(layer.config["causal"]))
    return Emission(
        _call,
        {name: f"{kind}({', '.join(values)}, causal={causal})"},
        state,
        (Helper(_LAYERS, kind), TORCH),
    )


def _heads(layer: LayerSpec, name: str) -> Emission:
    config, weights = layer.config, layer.weights
    grouped = layer.class_name == "GroupedQueryAttention"
    heads = config["num_query_heads"] if grouped else config["num_heads"]
    groups = config["num_key_value_heads"] if grouped else heads
    bias, state, parts = config["use_bias"], {}, []
    names = ["query", "key", "value", "attention_output", *(["gate"] if config["use_gate"] else [])]
    for part in names:
        kernel = weights[f"{part}/kernel"]
        ahead = int(np.prod(kernel.shape[: 2 if part == "attention_output" else 1]))
        parts.append(linear(kernel.reshape(ahead, -1), bias=bias))
        for key in ("weight", "bias") if bias else ("weight",):
            state[f"{part}.{key}"] = f"{name}.{part}.{key}"
    if not config["use_gate"]:
        parts.append("None")
    zeros, adds = rules_of_rows(layer)
    axes = config.get("attention_axes")
    plan = arguments(
        int(heads),
        int(groups),
        tuple(map(int, weights["attention_output/kernel"].shape[2:])),
        config["sliding_window"],
        zeros,
        None if axes is None else tuple(axes),
        adds,
    )
    return Emission(
        _call,
        {name: f"MultiHeadAttention({', '.join(parts)}, plan=Plan({plan}))"},
        state,
        (Helper(_LAYERS, "MultiHeadAttention"), Helper(_LAYERS, "Plan")),
    )


EMITTERS: Mapping[str, Emit] = {
    "Attention": _attention,
    "AdditiveAttention": _attention,
    "MultiHeadAttention": _heads,
    "GroupedQueryAttention": _heads,
}
