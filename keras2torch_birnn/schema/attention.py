"""Attention layers, and the weights of the projections inside them.

Sources: ``attention/*.py`` of tf.keras 2.4 to 2.15 and of Keras 3.0 to 3.15.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from keras2torch_birnn.schema.merging import shapes_of
from keras2torch_birnn.schema.options import (
    REQUIRED,
    BadOptionError,
    Option,
    choice,
    flag,
    number,
    optional,
    size,
    sizes,
)
from keras2torch_birnn.schema.row import Config, Schema, ShapeError, WeightShapes, last
from keras2torch_birnn.spec import Shape, Structure

# What a call may say; the scores are a second output.
CALL_OPTIONS: Mapping[str, Option] = {
    "return_attention_scores": flag(False),
    "use_causal_mask": flag(False),
}


def _scored(config: Config, output: Shape | None, scores: Shape) -> Any:
    return (output, scores) if config.get("return_attention_scores") else output


# ---- Attention, AdditiveAttention: [query, value] or [query, value, key] -------------------------


def _three(inputs: Structure) -> tuple[Shape | None, ...]:
    """Return the shapes (B, ..., T, features); the axes between B and T are equal in all."""
    shapes = shapes_of(inputs, least=2, most=3)
    _check_equal(shapes, range(1, _rank_of(shapes) - 2))
    return shapes


def _rank_of(shapes: Sequence[Shape | None]) -> int:
    """Return the number of dimensions that all have; 3, the least, where none is known."""
    known = [shape for shape in shapes if shape is not None]
    for shape in known:
        if len(shape) < 3 or any(isinstance(size, tuple) for size in shape):
            raise ShapeError(f"tensors of 3 dimensions at least are expected, found {list(shape)}")
        if len(shape) != len(known[0]):
            raise ShapeError("query, value and key differ in their number of dimensions")
    return len(known[0]) if known else 3


def _check_equal(shapes: Sequence[Shape | None], axes: Iterable[int]) -> None:
    """Refuse different sizes on axes that are not attended over."""
    for axis in axes:
        if len({shape[axis] for shape in shapes if shape is not None} - {None}) > 1:
            raise ShapeError(f"axis {axis} is not attended over, but its sizes differ")


def _attention_output(config: Config, inputs: Structure) -> Any:
    query, value = _three(inputs)[:2]
    steps = query[:-1] if query else (None,) * (len(value) - 1 if value else 2)
    return _scored(config, (*steps, last(value)), (*steps, value[-2] if value else None))


def _dot_weights(config: Config, inputs: Structure) -> WeightShapes:
    names = (
        ("scale", config["use_scale"]),
        ("concat_score_weight", config["score_mode"] == "concat"),
    )
    return {name: () for name, there in names if there}


def _additive_weights(config: Config, inputs: Structure) -> WeightShapes:
    width = last(_three(inputs)[0]) if inputs is not None else None
    return {"scale": (width,)} if config["use_scale"] else {}


# ---- MultiHeadAttention: (query, value, key=None) ------------------------------------------------

# Where the v3 store keeps a projection: the layer's attribute, whose name is Keras'.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "query": ("_query_dense", "query_dense"),
    "key": ("_key_dense", "key_dense"),
    "value": ("_value_dense", "value_dense"),
    "attention_output": ("_output_dense", "output_dense"),
}


def _query_value_key(inputs: Structure) -> tuple[Shape | None, Shape | None, Shape | None]:
    """Return the three shapes."""
    if not isinstance(inputs, tuple) or len(inputs) < 2 or any(isinstance(s, int) for s in inputs):
        raise ShapeError("a query and a value are expected")
    query, value = inputs[:2]
    key = inputs[2] if len(inputs) > 2 and inputs[2] is not None else value
    if _rank_of((query, value, key)) > 3:
        raise ShapeError("tensors of 3 dimensions are expected")
    mask = inputs[3] if len(inputs) > 3 else None
    if mask is not None and query is not None and value is not None:
        pairs = zip(mask[-2:], (query[1], value[1]), strict=False)
        if any(None not in (a, b) and a not in (1, b) for a, b in pairs):
            raise ShapeError(f"attention_mask {list(mask)} does not fit the steps")
    return query, value, key


def _projections(config: Config, shapes: Mapping[str, tuple[Shape, Shape]]) -> WeightShapes:
    """Return each projection's kernel (input..., output...) and, with use_bias, its bias."""
    out: dict[str, Shape] = {}
    for name, (inputs, outputs) in shapes.items():
        out[f"{name}/kernel"] = (*inputs, *outputs)
        if config["use_bias"]:
            out[f"{name}/bias"] = outputs
    return out


def _multi_head_weights(config: Config, inputs: Structure) -> WeightShapes:
    query, value, key = (None, None, None)
    if inputs is not None:
        query, value, key = _query_value_key(inputs)
    heads, width = config["num_heads"], config["value_dim"] or config["key_dim"]
    out = config["output_shape"] or (last(query),)
    return _projections(
        config,
        {
            "query": ((last(query),), (heads, config["key_dim"])),
            "key": ((last(key),), (heads, config["key_dim"])),
            "value": ((last(value),), (heads, width)),
            "attention_output": ((heads, width), out),
        },
    )


def _heads_output(config: Config, inputs: Structure) -> Any:
    query, value, _ = _query_value_key(inputs)
    width = config["output_shape"] or (last(query),)
    batch, steps = query[:2] if query else (None, None)
    scores = (batch, config["num_heads"], steps, value[1] if value else None)
    return _scored(config, (batch, steps, *width), scores)


def _widths(value: Any) -> tuple[int, ...] | None:
    """Parse ``output_shape``: a width, or several."""
    if not value:
        return None
    result: tuple[int, ...] = sizes().parse(value if isinstance(value, list | tuple) else [value])
    return result


def _steps(value: Any) -> tuple[int, ...] | None:
    """Parse ``attention_axes``: the axis of steps, or None, which is the same."""
    if value not in (None, 1, [1], (1,)):
        raise BadOptionError("attention over the axis of steps alone is supported")
    return None


# masking: "ignore" the masks of query, value and key; or use them, and take 1e9 off masked scores
# ("add"), where Keras calls no function for it all ("add by hand"); or replace these: a row with
# nothing to attend to is "zeros" by hand.
_MASKING: Mapping[str, Option] = {
    "masking": choice(REQUIRED, "ignore", "add", "add by hand", "zeros")
}
_ARGUMENTS = ("query", "value", "key", "attention_mask")
_DENSE: Mapping[str, Option] = {
    "dropout": number(0.0, 0.0, 1.0),
    "causal": flag(False),
}
_MASK_AFTER: Mapping[str, Option] = {"mask_after": choice(REQUIRED, "query", "none")}

# Rows of layers that are called with a list.
_of_list = partial(
    Schema,
    output=_attention_output,
    semantics=_MASK_AFTER,
    call_options=CALL_OPTIONS,
    listed=True,
    refused=("a mask into more than three dimensions",),
)

LAYERS: Mapping[str, Schema] = {
    "Attention": _of_list(
        {"use_scale": flag(False), "score_mode": choice("dot", "dot", "concat"), **_DENSE},
        _dot_weights,
    ),
    "AdditiveAttention": _of_list({"use_scale": flag(True), **_DENSE}, _additive_weights),
    "MultiHeadAttention": Schema(
        {
            "num_heads": size(),
            "key_dim": size(),
            "value_dim": optional(size()),
            "output_shape": Option(None, _widths),
            "attention_axes": Option(None, _steps),  # tf.keras notes the axis of steps
            # of tf_keras: scores of masked keys are replaced
            "softmax_robust_masking": flag(False),
            "use_bias": flag(True),
            "dropout": number(0.0, 0.0, 1.0),
            "use_gate": choice(False, False),
            "sliding_window": choice(None, None),
        },
        _multi_head_weights,
        _heads_output,
        # tf.keras notes the shapes that it was built for
        ignored=("query_shape", "key_shape", "value_shape", "flash_attention"),
        semantics=_MASKING,
        arguments=_ARGUMENTS,
        call_options=CALL_OPTIONS,
        groups=_GROUPS,
        refused=(
            "attention_axes",
            "use_gate=True",
            "sliding_window",
            "a masked input that layers beside it read (Keras 3.8 and later)",
        ),
    ),
}
