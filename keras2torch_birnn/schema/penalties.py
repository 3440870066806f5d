"""Regularizers and constraints as data: which there are, their options, the weights they are of.

``LayerSpec.training`` holds them by Keras' names: ``{"bias_constraint": {"name": "NonNeg"}}``.
One that no row below knows has only its name; it is refused when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from keras2torch_birnn.schema.options import BadOptionError, Option, axes, number
from keras2torch_birnn.spec import Generation, LayerSpec

REGULARIZER, CONSTRAINT = "_regularizer", "_constraint"
ACTIVITY = f"activity{REGULARIZER}"

REGULARIZERS: Mapping[str, Mapping[str, Option]] = {
    "L1L2": {"l1": number(0.0), "l2": number(0.0)},
}
CONSTRAINTS: Mapping[str, Mapping[str, Option]] = {
    "MaxNorm": {"max_value": number(2.0), "axis": axes(0)},
    "NonNeg": {},
    "UnitNorm": {"axis": axes(0)},
    "MinMaxNorm": {
        "min_value": number(0.0),
        "max_value": number(1.0),
        "rate": number(1.0),
        "axis": axes(0),
    },
}
# What a name before the ending stands for, where the weight is not called so, or not so alone.
_WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "recurrent": ("recurrent_kernel",),
    "depthwise": ("depthwise_kernel", "kernel"),
    "pointwise": ("pointwise_kernel",),
    "W": ("W", "kernel", "embeddings"),  # Keras 1
    "U": ("U", "recurrent_kernel"),
    "b": ("b", "bias"),
}


def rows_of(key: str) -> Mapping[str, Mapping[str, Option]]:
    """Return the table in which the value of an option such as ``bias_constraint`` is."""
    return REGULARIZERS if key.endswith(REGULARIZER) else CONSTRAINTS


def parse_penalty(key: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Parse one regularizer or constraint; its options become explicit.

    Raises:
        BadOptionError: an option that it does not have, or a value that it cannot have.
    """
    row = rows_of(key)[name]
    for option in options.keys() - row.keys():
        raise BadOptionError(f"{name} has no option {option}")
    found: dict[str, Any] = {"name": name}
    for option, kind in row.items():
        found[option] = kind.parse(options[option]) if option in options else kind.default
    return found


def is_known(key: str, value: Mapping[str, Any]) -> bool:
    """Tell whether a regularizer or constraint is one of the tables."""
    return value["name"] in rows_of(key)


def weights_of(key: str, layer: LayerSpec) -> Iterator[str]:
    """Yield the names of the weights of a layer that an option is for; none for the activity.

    An attention has kernels and biases of its projections, ``query/kernel``.
    """
    target = key.removesuffix(REGULARIZER).removesuffix(CONSTRAINT)
    names = _WEIGHTS.get(target, (target,))
    for name in layer.weights:
        if name in names or name.rpartition("/")[2] == target:
            yield name


def describe(layer: LayerSpec) -> list[str]:
    """Describe the regularizers and constraints of a layer: ``kernel: L1L2(l2=0.01)``."""
    return [
        f"{key.removesuffix(REGULARIZER).removesuffix(CONSTRAINT)}: {_shown(key, value)}"
        for key, value in layer.training.items()
    ]


def _shown(key: str, value: Mapping[str, Any]) -> str:
    if not is_known(key, value):
        return str(value["name"])
    row = rows_of(key)[value["name"]]
    options = [
        f"{option}={_text(value[option])}"
        for option, kind in row.items()
        if value["name"] != "L1L2" or value[option] != kind.default
    ]
    return f"{value['name']}({', '.join(options)})" if row else str(value["name"])


def _text(value: Any) -> str:
    """Write a number without the digits that float32 adds, an axis alone without parentheses."""
    if isinstance(value, tuple) and len(value) == 1:
        return str(value[0])
    return f"{value:.7g}" if isinstance(value, float) else str(value)


# ---- rules of the generations -------------------------------------------------------------------

# The name of a layer's rule in its semantics; set when the model is built.
PENALTY_RULE = "penalty_rule"


@dataclass(frozen=True)
class PenaltyRule:
    """Rule of a generation for the sum of all penalties.

    ``frozen``: regularizers of frozen weights count. ``per_row``: the penalty of an output is
    divided by its number of rows. ``single``: factors of L1L2 are rounded to float32, by
    TensorFlow's cast of a number.

    Sources: ``Layer.losses`` and ``Layer.__call__`` of Keras 2.0.8 to 2.3.1, tf.keras 2.15,
    tf_keras 2.21, Keras 3.0.5 to 3.15.
    """

    frozen: bool
    per_row: bool
    single: bool = False


@dataclass(frozen=True)
class Activity:
    """A regularizer of the output of a layer's module; ``refused``: why it is not known, if so."""

    place: str
    regularizer: Mapping[str, Any]
    refused: str = ""


def penalty_rule(generation: Generation) -> PenaltyRule:
    """Return the rule of a generation."""
    if generation.name == "keras3":
        new = generation.numbers >= (3, 14)
        return PenaltyRule(frozen=False, per_row=new, single=new)
    newer = generation.name == "tf.keras"
    return PenaltyRule(frozen=True, per_row=newer, single=newer)


def with_penalty_rule(layer: LayerSpec, rule: PenaltyRule) -> LayerSpec:
    """Return the layer with the rule in its semantics, if anything in it is regularized."""
    if not any(part.training for part in layer.walk()):
        return layer
    return replace(layer, semantics={**layer.semantics, PENALTY_RULE: rule})


def activities(layer: LayerSpec) -> Iterator[Activity]:
    """Yield the activity regularizers of a layer and of those inside it, which are refused."""
    own = layer.training.get(ACTIVITY)
    if own is not None:
        refused = "of its inner projections" if layer.class_name == "MultiHeadAttention" else ""
        yield Activity(layer.place, own, refused)
    for part in layer.parts.values():
        for one in activities(part):
            yield replace(one, refused=one.refused or f"of a layer inside {layer.class_name}")
