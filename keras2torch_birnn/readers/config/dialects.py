"""Config keys and defaults of every Keras generation; passes of old ones to the words of today.

They turn the configs of a file into the explicit, canonical options of ``schema``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras2torch_birnn.errors import invalid, printable
from keras2torch_birnn.limits import MAX_RANK, MAX_SIZE
from keras2torch_birnn.readers.config.classes import (
    describe_custom_class,
    is_custom_class,
    is_custom_function,
)
from keras2torch_birnn.readers.config.generations import rule_of
from keras2torch_birnn.schema import CONV_LSTMS, SCHEMA, BadOptionError
from keras2torch_birnn.schema.options import parse_activation
from keras2torch_birnn.schema.pages import Pages
from keras2torch_birnn.spec import Generation

# Keys that cannot change what a trained layer computes, in any class (``Schema.ignored``: in one).
_NO_EFFECT = frozenset(
    "name batch_input_shape batch_shape input_dtype seed unit_forget_bias sparse ragged optional "
    "input_length input_dim_hint build_config build_input_shape quantization_config "
    "num_constants renorm_clipping renorm_momentum synchronized fused virtual_batch_size "
    "lora_rank lora_alpha autocast".split()
)
_NO_EFFECT_ENDINGS = ("_initializer", "_regularizer", "_constraint")


def has_effect(class_name: str, key: str) -> bool:
    """Tell whether a config key can change what the layer computes."""
    ignored = SCHEMA[class_name].ignored if class_name in SCHEMA else ()
    return not (key in _NO_EFFECT or key.endswith(_NO_EFFECT_ENDINGS) or key in ignored)


def rename_keys(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with the canonical names of its keys."""
    names = SCHEMA[class_name].renamed
    return {names.get(key, key): plain_value(value) for key, value in config.items()}


def plain_value(value: Any) -> Any:
    """Unwrap a NumPy number as Keras wrote it: 0-d arrays, ``__numpy__``, tuples."""
    if isinstance(value, Mapping):
        if set(value) == {"type", "value"}:
            return value["value"]
        if value.get("class_name") == "__numpy__" and isinstance(value.get("config"), Mapping):
            return value["config"].get("value")
        if value.get("class_name") == "__tuple__":
            return value.get("items")
    return value


def parse_shape(value: Any, place: str) -> tuple[int | None, ...]:
    """Parse a shape of a config: integers and null, at most ``MAX_RANK`` of them."""
    value = plain_value(value)
    if (
        not isinstance(value, list | tuple)
        or not 1 <= len(value) <= MAX_RANK
        or not all(v is None or (type(v) is int and 0 < v <= MAX_SIZE) for v in value)
    ):
        raise invalid(f"{printable(value)} is not the shape of an input", place)
    return tuple(value)


# By class -> the activation of a config. A class without config stands for the layer's defaults.
_ACTIVATION_LAYERS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "LeakyReLU": lambda c: {
        "name": "leaky_relu",
        "negative_slope": plain_value(c.get("negative_slope", c.get("alpha", 0.3))),
    },
    "ELU": lambda c: {"name": "elu", "alpha": plain_value(c.get("alpha", 1.0))},
    "ReLU": lambda c: {
        "name": "relu",
        **{k: plain_value(c[k]) for k in ("negative_slope", "max_value", "threshold") if k in c},
    },
    "Softmax": lambda c: {"name": "softmax", "axis": plain_value(c.get("axis", -1))},
}


def activation(value: Any, generation: Generation) -> Any:
    """Parse an activation of any generation and make its meaning explicit.

    Forms: a name, None, or a serialized layer. What else Keras writes is the user's own.

    Raises:
        BadOptionError: it is not an activation that can be converted.
    """
    if isinstance(value, Mapping):
        return _activation_object(value, generation)
    if value is None:
        return "linear"
    if not isinstance(value, str):
        raise BadOptionError("an activation's name is expected")
    if value in _ACTIVATION_LAYERS:
        return parse_activation(_ACTIVATION_LAYERS[value]({}))
    name = {
        "hard_sigmoid": rule_of("hard_sigmoid", generation),
        "softmax_v2": "softmax",
    }.get(value, value)
    if name != value or not value.startswith("hard_sigmoid"):
        return parse_activation(name)
    raise BadOptionError(f"{value!r} is not an activation of Keras")


def _activation_object(value: Mapping[str, Any], generation: Generation) -> Any:
    class_name, config = str(value.get("class_name")), value.get("config")
    if is_custom_function(value):
        name = printable(str(config))
        raise BadOptionError(
            f"{name} is a function of the user's own, by the file's mark, and Keras asks for it in "
            "custom_objects",
            f"if it computes what one of Keras does, load the model in Keras with custom_objects="
            f'{{"{name}": keras.activations.THAT_ONE}} and save it again; else apply it in a layer '
            "of your own, given with --plugin",
        )
    if is_custom_class(value):
        raise BadOptionError(f"{printable(class_name)} is {describe_custom_class(value)}")
    # (Keras 3 writes a lambda without the name of a class.)
    if class_name in ("Lambda", "__lambda__") or ("class_name" not in value and "value" in value):
        raise BadOptionError("it holds Python code, which k2t never runs")
    if class_name in _ACTIVATION_LAYERS and isinstance(config, Mapping):
        return parse_activation(_ACTIVATION_LAYERS[class_name](config))
    if class_name == "Activation" and isinstance(config, Mapping):
        return activation(config.get("activation"), generation)
    raise BadOptionError("a name, ReLU, LeakyReLU, ELU or Softmax is expected")


def masked_output(
    class_name: str, config: Mapping[str, Any], generation: Generation, *, wrapped: bool
) -> str:
    """Return the output rule of masked steps (``spec.MaskedOutput``) of a loop over time.

    ``wrapped``: inside a Bidirectional, which forces zeros at masked steps since tf.keras.
    """
    convolutional = class_name in CONV_LSTMS
    rule = rule_of("conv_lstm" if convolutional else "masked_output", generation)
    if rule != "zeros":
        # The unrolled loop of Keras 1 to 2.2.4 starts from zeros, not from the state.
        return "previous_output" if config.get("unroll") and not convolutional else str(rule)
    zeros = config.get("return_sequences") if wrapped else config.get("zero_output_for_mask")
    if not zeros:
        return "previous_output"
    # With unroll=True tf.keras and Keras 3 apply the mask in the order of time to outputs in the
    # order of reading. Where both orders agree, and to the last output alone, it is the plain rule.
    reversed_too = config.get("unroll") and config.get("go_backwards")
    return "zeros_unreversed" if reversed_too and config.get("return_sequences") else "zeros"


def is_tensorflow_1(config: Mapping[str, Any], generation: Generation) -> bool:
    """Tell whether TensorFlow 1 wrote a wrapped layer, or 2.0 after ``disable_v2_behavior``.

    Both write no dtype for the wrapped layer and one into its initializers. TensorFlow 2.0 does
    neither; its version of Keras, 2.2.4-tf, is that of 1.14.
    """
    if generation.name != "tf.keras" or not generation.version.startswith(("2.1.", "2.2.")):
        return False
    start = config.get("kernel_initializer")
    inside = start.get("config") if isinstance(start, Mapping) else None
    return config.get("dtype", "") is None or (isinstance(inside, Mapping) and "dtype" in inside)


def cell_defaults(
    class_name: str, own: Mapping[str, Any], generation: Generation
) -> dict[str, Any]:
    """Make explicit the defaults of one step in this generation, of a layer's or cell's class."""
    config, kind = dict(own), class_name.removesuffix("Cell")
    cudnn = kind.startswith("CuDNN")
    default = "sigmoid" if cudnn else rule_of("recurrent_activation", generation)
    if kind in CONV_LSTMS and generation.name != "keras3":
        default = "hard_sigmoid"
    if kind != "SimpleRNN":
        config.setdefault("recurrent_activation", default)
    if kind.endswith("GRU"):
        config.setdefault("reset_after", cudnn or rule_of("reset_after", generation))
    # Not in Keras 3's configs: 2, but 1 (a mask per gate) with recurrent_dropout
    # (Keras 3.15 ``layers/rnn/lstm.py``). SimpleRNN has one gate and no such option.
    if kind not in CONV_LSTMS:
        config.setdefault("implementation", 1 if config.get("recurrent_dropout") else 2)
    return config


# ---- passes --------------------------------------------------------------------------------------


# Passes over the entry of a layer, ``entry -> entry``, to the words of today, by generation.


Pass = Callable[[Any], Any]

# The pages of generations that need passes; their ``PASSES`` name those of each generation.
PASSES: Mapping[str, tuple[Pass, ...]] = Pages(
    "keras2torch_birnn.readers.config", "PASSES", {"keras1": "keras1", "keras2": "keras1_merge"}
)
_REFUSED = "refused options"


class _Refused(tuple[str, ...]):
    """Findings of a pass; no file can hold an object of this class."""


def with_refused(entry: Mapping[str, Any], refused: Sequence[str]) -> Mapping[str, Any]:
    """Return an entry with options that a pass found to be unsupported, in words."""
    return {**entry, _REFUSED: _Refused(refused)} if refused else entry


def list_refused(entry: Mapping[str, Any]) -> Sequence[str]:
    """List the options that passes found to be unsupported."""
    found = entry.get(_REFUSED)
    return found if isinstance(found, _Refused) else ()
