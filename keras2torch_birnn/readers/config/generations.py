"""The Keras version that wrote the file: the meaning of its configs, its keys and defaults.

Configs of a file become the explicit, canonical options of ``schema``; entries of old generations
are brought to the words of today by passes.
Sources: Keras at its tags 1.2.2, 2.0.8, 2.2.4, 2.3.1 (``keras/layers/recurrent.py``,
``keras/backend/tensorflow_backend.py``), tf.keras 2.15 (``keras/src/backend.py`` ``rnn``) and
Keras 3 (``keras/src/activations``, ``keras/src/backend/*/rnn.py``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras2torch_birnn.errors import InvalidModelFileError, invalid, printable
from keras2torch_birnn.limits import MAX_RANK, MAX_SIZE
from keras2torch_birnn.readers.config.classes import (
    describe_custom_class,
    is_custom_class,
    is_custom_function,
)
from keras2torch_birnn.schema import CONV_LSTMS, SCHEMA, BadOptionError
from keras2torch_birnn.schema.options import parse_activation
from keras2torch_birnn.schema.recurrent import STACK
from keras2torch_birnn.schema.row import Pages
from keras2torch_birnn.spec import Generation, LayerSpec

_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})(?:\.([0-9]{1,4}))?((?![0-9])[!-~]*)")
# A Keras 3 whose version is not known; real ones have three numbers.
UNKNOWN_KERAS3 = "3.0"
_OLD_SIGMOID, _NEW_SIGMOID = "hard_sigmoid_0.2", "hard_sigmoid_1/6"
_GATES = ("activation", "recurrent_activation")  # options that may hold one of them

# In the order of time. "tf.keras": that of TensorFlow 1.9 and later; its version 2.2.4-tf is that
# of TensorFlow 1.13 to 2.0, 2.3.0-tf that of 2.1 and of 2.2.
_FAMILIES = ("keras1", "keras2", "tf.keras", "keras3")

# What a Keras does -> since which one -> how. The last column that is not newer than the file's
# Keras holds; a row begins at Keras 1 even where the layer came later.
_RULES: Mapping[str, Mapping[str, Any]] = {
    # hard_sigmoid is clip(0.2 x + 0.5, 0, 1) or clip(x / 6 + 0.5, 0, 1)
    "hard_sigmoid": {"keras1": _OLD_SIGMOID, "keras3": _NEW_SIGMOID},
    "recurrent_activation": {"keras1": "hard_sigmoid", "keras2 2.3": "sigmoid"},
    "reset_after": {"keras1": False, "tf.keras": True},
    # the output at masked steps of Bidirectional(return_sequences=True)
    "masked_output": {
        "keras1": "previous_state",
        "keras2 2.3": "previous_output",
        "tf.keras": "zeros",
    },
    # the same of a convolutional LSTM
    "conv_lstm": {"keras1": "fails", "tf.keras": "previous_output", "keras3": "zeros"},
    # a stateful layer carries its state inside a Bidirectional (not in TensorFlow 1 either, see
    # ``is_tensorflow_1``); where not, every batch starts from zeros
    "bidirectional_carries": {"keras1": True, "keras2 2.1.4": False, "tf.keras": True},
    # a stateful layer prefers its carried state, unless all zero, to ``initial_state``
    "carried_state_wins": {"keras1": False, "tf.keras 2.3": True, "keras3": False},
    # an RNN begins with what its cell's ``get_initial_state`` returns
    "cells_give_states": {"keras1": False, "tf.keras": True},
    # later layers see a mask that was passed as an argument, not the input's
    "passed_mask_goes_on": {
        "keras1": False,
        "tf.keras 2.3": True,
        "keras3": False,
        "keras3 3.11": True,
    },
    # a MultiHeadAttention takes the masks off its inputs, also for later readers of these inputs
    "attention_takes_masks": {"keras1": False, "keras3 3.8": True},
}

# The same of one class's options, or of several classes'.
_RULES_OF_LAYERS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    # up to 3.3 ``Layer.__call__`` finds no mask on a list of tensors
    "Add Subtract Multiply Average Maximum Minimum Concatenate": {
        "masking": {"keras1": "all", "keras3": "none", "keras3 3.4": "any"},
    },
    "Attention AdditiveAttention": {
        "mask_after": {"keras1": "query", "keras3": "none", "keras3 3.4": "query"},
    },
    "MultiHeadAttention": {
        "masking": {
            "keras1": "add",
            "tf.keras": "ignore",
            "tf.keras 2.10": "add",
            "keras3 3.7": "add by hand",  # through ``ops.dot_product_attention`` where it can
            "keras3 3.13": "zeros",
        },
    },
    "Dot": {
        "smallest_norm": {"keras1": 1e-6, "keras3": 1e-7},
        "highest_rank": {"keras1": 3, "keras2 2.3": 32},
    },
    "UnitNormalization": {
        "smallest_norm": {"keras1": 1e-6, "keras3 3.6": 1e-12},
    },
    "GroupNormalization": {"masking": {"keras1": "weigh", "keras3": "ignore"}},
    "Softmax": {
        "masking": {"keras1": "ignore", "tf.keras 2.4": "add", "keras3 3.13": "replace"},
    },
    "Identity Normalization Rescaling": {"passes_mask": {"keras1": False, "keras3": True}},
    "ReLU": {"passes_mask": {"keras1": True, "tf.keras": False, "tf.keras 2.5": True}},
    "GlobalAveragePooling1D": {"use_mask": {"keras1": False, "keras2 2.2.3": True}},
    "TimeDistributed": {
        "masking": {
            "keras1": "passes by",
            "keras2 2.2": "inner unless fixed",
            "tf.keras": "inner",
            "tf.keras 2.2": "inner, input if fixed",
            "tf.keras 2.3": "inner, unknown if fixed",
            "tf.keras 2.4": "inner",
            "keras3": "input",
        },
    },
    STACK: {
        "states": {
            "keras1": "first cell first",
            "keras2": "last cell first",
            "keras2 2.2.3": "first cell first",
        },
    },
    # at the corners of pixels (TensorFlow 1) or their centers; TensorFlow 1.14 and 2.0 have the
    # same version of tf.keras
    "UpSampling2D": {
        "bilinear": {
            "keras1": "corners",
            "tf.keras": "corners or centers",
            "tf.keras 2.3": "centers",
        },
    },
    # images that layers change in training stay whole numbers
    "Resizing": {"keeps_integers": {"keras1": False, "keras3": True}},
    "RandomHeight RandomWidth": {
        "keeps_integers": {"keras1": False, "tf.keras 2.12": True, "keras3": False},
    },
    "RandomContrast RandomBrightness RandomGrayscale RandomColorJitter RandomHue "
    "RandomColorDegeneration RandomSaturation RandomPosterization RandomInvert MixUp "
    "MaxNumBoundingBoxes": {"keeps_integers": {"keras1": False, "keras3 3.6": True}},
}
_OPTIONS = {name: rows for names, rows in _RULES_OF_LAYERS.items() for name in names.split()}


def generation_of(version: str) -> Generation:
    """Return the Keras of ``version`` ("2.2.4", "2.2.4-tf", "3.3.3")."""
    match = _VERSION.fullmatch(version)
    major = int(match[1]) if match else 0
    if match is None or not major:
        raise InvalidModelFileError(
            f"keras_version {printable(version)!r} is not a version of Keras",
            place="keras_version",
        )
    if major > 3:
        raise InvalidModelFileError(
            f"keras_version {printable(version)!r} is newer than this k2t knows",
            "upgrade keras2torch_birnn",
            place="keras_version",
        )
    if major == 2:
        own = int(match[2]) <= 3 and "-tf" not in match[4]
        return Generation("keras2" if own else "tf.keras", version)
    return Generation("keras1" if major == 1 else "keras3", version)


def rule_of(name: str, generation: Generation) -> Any:
    """Return how a Keras does one of the things that are not options of one class."""
    return _value_at(generation, _RULES[name])


def options_of(class_name: str, generation: Generation) -> dict[str, Any]:
    """Return the options of a class that no file states, because the Keras decides them."""
    rows = _OPTIONS.get(class_name, {})
    return {name: _value_at(generation, row) for name, row in rows.items()}


def _value_at(generation: Generation, row: Mapping[str, Any]) -> Any:
    file, found = (_FAMILIES.index(generation.name), generation.numbers), None
    for since, value in row.items():
        family, _, version = since.partition(" ")
        first = tuple(map(int, version.split("."))) if version else ()
        if (_FAMILIES.index(family), first) <= file:
            found = value
    return found


def has_mask(root: LayerSpec) -> bool:
    """Tell whether anything in the model creates a mask."""
    return any(
        layer.class_name == "Masking"
        or layer.config.get("mask_zero")
        or any("mask" in call.kwargs for call in (layer.graph.calls if layer.graph else ()))
        for layer in root.walk()
    )


def version_by_shape(model: Mapping[str, Any]) -> str:
    """Guess a version for an architecture that names none (JSON of Keras 3, files of Keras 1).

    Only Keras 3 writes ``batch_shape``, ``build_config`` with a ``module`` and dtype policies; a
    text that has ``time_major`` comes from tf.keras.
    """
    text = str(model)
    if "'batch_shape'" in text or "'DTypePolicy'" in text or "'zero_output_for_mask'" in text:
        return UNKNOWN_KERAS3
    if "'time_major'" in text or "'registered_name'" in text:
        return "2.15"
    return "1" if "'output_dim'" in text and "'inner_activation'" in text else ""


_FORMULAS: Mapping[str, str] = {
    _OLD_SIGMOID: "hard_sigmoid is clip(0.2 x + 0.5, 0, 1)",
    _NEW_SIGMOID: "hard_sigmoid is clip(x/6 + 0.5, 0, 1)",
}
_AT_MASKED_STEPS: Mapping[str, str] = {
    "zeros": "Bidirectional gives zeros at masked steps",
    "previous_output": "masked steps repeat the previous output",
    "previous_state": "masked steps repeat the previous state",
}


def describe_rules(generation: Generation, root: LayerSpec, writer: str = "") -> str:
    """Describe in one line which Keras wrote the model, and its rules that the model uses.

    writer: a program other than Keras that wrote the file and computes as this version does.
    """
    name = "tf.keras" if generation.name == "tf.keras" else "Keras"
    version = f"{name} {printable(generation.version)}"
    if generation.version == UNKNOWN_KERAS3:
        version = (
            f'a Keras 3 that it does not name, and read by the rules of {UNKNOWN_KERAS3} ("keras_'
            'version" in the architecture names another)'
        )
    by = f"{printable(writer)}, which computes as {version}" if writer else version
    layers = list(root.walk())
    sigmoid, rule = (rule_of(name, generation) for name in ("hard_sigmoid", "masked_output"))
    facts = []
    if any(sigmoid in (layer.config.get(key) for key in _GATES) for layer in layers):
        facts.append(_FORMULAS[sigmoid])
    if has_mask(root) and any(layer.semantics.get("masked_output") == rule for layer in layers):
        facts.append(_AT_MASKED_STEPS[rule])
    return f"written by {by}" + (f": {'; '.join(facts)}" if facts else "")


# ---- words of each generation --------------------------------------------------------------------


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

# The page of the generations that need passes; its ``PASSES`` name those of each.
PASSES: Mapping[str, tuple[Pass, ...]] = Pages(
    "keras2torch_birnn.readers.config", "PASSES", {"keras1": "keras1", "keras2": "keras1"}
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
