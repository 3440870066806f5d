"""The Keras version that wrote the file, and the meaning of its configs.

Sources: Keras at its tags 1.2.2, 2.0.8, 2.2.4, 2.3.1 (``keras/layers/recurrent.py``,
``keras/backend/tensorflow_backend.py``), tf.keras 2.15 (``keras/src/backend.py`` ``rnn``) and
Keras 3 (``keras/src/activations``, ``keras/src/backend/*/rnn.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.schema.cells import STACK
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
    # ``dialects.is_tensorflow_1``); where not, every batch starts from zeros
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
    """Return the Keras of ``version`` ("2.2.4", "2.2.4-tf", "3.3.3").

    Raises:
        InvalidModelFileError: it is not a version of Keras, or of one after Keras 3.
    """
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
