"""Training as the Keras of the file does it: regularizers, constraints, what is trained or frozen.

``LayerSpec.training`` holds penalties by Keras' names: ``{"bias_constraint": {"name": "NonNeg"}}``.
One that no row below knows has only its name; it is refused when it is needed. What is trained is
not in the text of a spec: it follows from the generation, when the model is built, so it holds for
an OUT of any age. Sources: ``trainable_weights`` of layers, wrappers and models of Keras 1.2.2,
2.0.8 to 2.3.1, of tf.keras of TensorFlow 1.14 to 2.15 and of Keras 3.0.5 to 3.15;
``BatchNormalization.call`` and ``RNN.get_initial_state`` of the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from keras2torch_birnn.schema import CONV_LSTMS
from keras2torch_birnn.schema.custom_cells import ASKED, is_custom_cell
from keras2torch_birnn.schema.options import BadOptionError, Option, axes, number
from keras2torch_birnn.spec import Generation, LayerSpec

# ---- regularizers and constraints ----------------------------------------------------------------

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

# The name, in the semantics of a layer in which anything is regularized, of its rule.
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


def activities(layer: LayerSpec) -> Iterator[Activity]:
    """Yield the activity regularizers of a layer and of those inside it, which are refused."""
    own = layer.training.get(ACTIVITY)
    if own is not None:
        refused = "of its inner projections" if layer.class_name == "MultiHeadAttention" else ""
        yield Activity(layer.place, own, refused)
    for part in layer.parts.values():
        for one in activities(part):
            yield replace(one, refused=one.refused or f"of a layer inside {layer.class_name}")


# ---- what is trained, and what is frozen ---------------------------------------------------------

# In the semantics of a BatchNormalization: its own flag says that it is not trained. Those of outer
# layers do not count here, Keras does not look at them.
FROZEN = "frozen"


def with_training_rules(root: LayerSpec, generation: Generation) -> LayerSpec:
    """Return the model with ``trainable`` set on every layer, and with its penalty rules.

    ``trainable`` is the state after Keras' ``load_model`` of the file: False on a layer means that
    none of the weights in it is trained, True holds for its own weights alone. TensorFlow 2.2 to
    2.11 thaws a Bidirectional in ``load_model``; it stays frozen here, as the file says.
    """
    # Keras 3 writes the flag of the model only if it is functional.
    flagged = generation.name == "keras3" and root.class_name == "Functional"
    learns = not flagged or root.config.get("trainable", True)
    return _settled(root, generation, learns=learns)


# Keras 3: layers whose weights belong to inner layers, to which the flag is not passed on.
_FLAG_NOT_PASSED_ON = frozenset(("MultiHeadAttention", *CONV_LSTMS))


_WRAPPERS = frozenset(("Bidirectional", "TimeDistributed"))


def _set_wrapper_flags(layer: LayerSpec, generation: Generation) -> LayerSpec:
    """Set the flags of a wrapper and of what it wraps as Keras 1 and 2 use them.

    The wrapper's flag has no effect before 2.1.4; from then on it replaces that of what it wraps,
    but not those of the layers in a model.
    """
    if generation.name not in ("keras1", "keras2") or layer.class_name not in _WRAPPERS:
        return layer
    if generation.numbers < (2, 1, 4):
        return replace(layer, config={**layer.config, "trainable": True})
    flag = layer.config.get("trainable", True)
    parts = {
        key: replace(part, config={**part.config, "trainable": flag})
        for key, part in layer.parts.items()
    }
    return replace(layer, parts=parts)


def _settled(layer: LayerSpec, generation: Generation, *, learns: bool) -> LayerSpec:
    """Set the rules of a layer and of all inside it; ``learns``: outer layers are trainable."""
    layer = _set_wrapper_flags(layer, generation)
    own = bool(layer.config.get("trainable", True))
    config, semantics = dict(layer.config), dict(layer.semantics)
    if layer.class_name == "BatchNormalization":
        semantics[FROZEN] = not own
    if is_custom_cell(layer):
        semantics[ASKED] = generation.name in ("tf.keras", "keras3")
    if generation.name == "keras3":
        heard = (
            not layer.parts and layer.graph is None and layer.class_name not in _FLAG_NOT_PASSED_ON
        )
        inner, config["trainable"] = learns, learns and (own or not heard)
    else:
        # A model's own flag is not in its file, or is not read from it; its layers' flags are.
        inner = learns and (own or layer.graph is not None)
        config["trainable"] = inner
    if any(part.training for part in layer.walk()):
        semantics[PENALTY_RULE] = penalty_rule(generation)
    return replace(layer, config=config, semantics=semantics).map_inner(
        lambda _, one: _settled(one, generation, learns=inner)
    )


def describe_batch_rule(root: LayerSpec, generation: Generation) -> tuple[str, ...]:
    """Note where the Keras of the file may train a BatchNormalization otherwise."""
    layers = [one for one in root.walk() if one.class_name == "BatchNormalization"]
    if not layers or generation.name == "keras3":
        return ()
    return (
        "BatchNormalization is trained by the rule of Keras 3: moments of the steps that are not "
        "masked, a moving variance without n / (n - 1), frozen layers by their moving averages; "
        f"Keras {generation.version} may differ",
    )
