"""Source text of attention layers: the modules of ``layers.attention``, copied."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras2torch_birnn.exporting.source.code import (
    Expression,
    Statement,
    arguments,
    call,
    code,
    join,
    literal,
    member,
    symbol,
)
from keras2torch_birnn.exporting.source.dense import kernel_keys, linear, parameter
from keras2torch_birnn.exporting.source.emission import (
    Called,
    Emission,
    Emit,
    Site,
    class_of,
    same_names,
)
from keras2torch_birnn.layers.attention import rules_of_rows
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.spec import LayerSpec


def _call(site: Site) -> Expression | Called:
    named = dict(site.kwargs)
    if site.mask is not None:
        named["mask"] = site.mask
    called = call(member(site.name), *site.args, **named)
    if not named.get("return_attention_scores"):
        return called
    scores = site.fresh("scores")
    both = join(", ", (site.out, scores))
    return Called((Statement(both, called),), (site.out, scores))


def _options(layer: LayerSpec) -> frozenset[str]:
    return frozenset(SCHEMA[layer.class_name].call_options)


def _attention(layer: LayerSpec, name: str) -> Emission:
    concat = layer.config.get("score_mode") == "concat"
    kind = "AdditiveAttention" if layer.class_name == "AdditiveAttention" else "Attention"
    kind = "ConcatAttention" if concat else kind
    scale = parameter(layer.weights["scale"]) if layer.config["use_scale"] else None
    score = (parameter(layer.weights["concat_score_weight"]),) if concat else ()
    keys = [*(["scale"] if scale else []), *(["concat_score_weight"] if concat else [])]
    return Emission(
        _call,
        {name: call(symbol(kind), scale, *score, causal=bool(layer.config["causal"]))},
        same_names(name, keys),
        (class_of(layer, kind),),
        options=_options(layer),
    )


def _heads(layer: LayerSpec, name: str) -> Emission:
    config, weights = layer.config, layer.weights
    grouped = layer.class_name == "GroupedQueryAttention"
    heads = config["num_query_heads"] if grouped else config["num_heads"]
    groups = config["num_key_value_heads"] if grouped else heads
    bias, keys, parts = config["use_bias"], [], []
    names = ["query", "key", "value", "attention_output", *(["gate"] if config["use_gate"] else [])]
    for part in names:
        kernel = weights[f"{part}/kernel"]
        ahead = int(np.prod(kernel.shape[: 2 if part == "attention_output" else 1]))
        parts.append(linear(*kernel.reshape(ahead, -1).shape, bias=bias))
        keys += [f"{part}.{key}" for key in kernel_keys(bias=bias)]
    if not config["use_gate"]:
        parts.append(literal(None))
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
        {name: code("MultiHeadAttention({}, plan=Plan({}))", join(", ", parts), plan)},
        same_names(name, keys),
        (class_of(layer, "MultiHeadAttention"), class_of(layer, "Plan")),
        options=_options(layer),
    )


EMITTERS: Mapping[str, Emit] = {
    "Attention": _attention,
    "AdditiveAttention": _attention,
    "MultiHeadAttention": _heads,
    "GroupedQueryAttention": _heads,
}
