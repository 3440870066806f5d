"""Layer classes that cannot be converted: why, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.errors import K2TError, UnsupportedLayerError, printable
from keras2torch_birnn.readers.advice import HOW_TO_REPLACE
from keras2torch_birnn.readers.config.custom_objects import describe_custom_class, is_custom_class
from keras2torch_birnn.readers.config.operation_entries import is_operation
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.schema import CLASS_NAMES, OPS
from keras2torch_birnn.schema.custom_layers import LAMBDA, python_name
from keras2torch_birnn.schema.shipped import advise_shipped

_TEXT_ADVICE = (
    "do that before the model, and cut the layer off: --from the layer behind it (docs/cutting.md)"
)
# Why, and what to do instead.
_REFUSED_CLASSES: Mapping[str, tuple[str, str]] = {
    LAMBDA: (
        "holds Python code, which k2t never runs",
        "write what it computes in torch, under @k2t.supplies(its name) in a --plugin file",
    ),
    "TorchModuleWrapper": (
        "holds a pickle, which k2t never opens",
        "save the model without it, and call the torch module that it wraps",
    ),
    "TFSMLayer": (
        "loads a TensorFlow SavedModel from elsewhere",
        "convert that SavedModel by itself",
    ),
    "StringLookup": ("looks up text, which torch does not hold", _TEXT_ADVICE),
    "TextVectorization": ("turns text into ids, which torch does not do", _TEXT_ADVICE),
    "IntegerLookup": ("looks numbers up, which the model's ids need only once", _TEXT_ADVICE),
    "HashedCrossing": (
        "hashes pairs of features into bins; do that before the model",
        "cut it off with --from or --to (docs/cutting.md)",
    ),
}
_HOW_TO_BEGIN = "begin with k2t plugin new MODEL > my_layers.py"
_HOW_TO_SUPPLY = (
    f"`k2t layers` lists what can be converted; for a layer of your own {_HOW_TO_BEGIN}; what is "
    "for training alone is cut off with --to (docs/cutting.md)"
)
# What to do instead of a layer of Keras: those in front of a model prepare its data.
_IN_FRONT = (
    *("AutoContrast", "CenterCrop", "Discretization", "Hashing", "RandomCrop"),
    *("MelSpectrogram", "STFTSpectrogram"),
)
_INSTEAD: Mapping[str, str] = {
    **dict.fromkeys(_IN_FRONT, _TEXT_ADVICE),
    "SpectralNormalization": "save the layer in it by itself, which computes the same",
}


def find_refusal(entry: Mapping[str, Any], class_name: str, parsing: Parsing) -> K2TError | None:
    """Return why this layer's class cannot be converted, or None."""
    shown = printable(class_name)
    if class_name in _REFUSED_CLASSES:
        why, advice = _REFUSED_CLASSES[class_name]
        return UnsupportedLayerError(f"{shown} layer {why}", advice)
    problem = entry.get("problem")
    if isinstance(problem, K2TError):  # of an operation
        return problem
    if is_operation(entry):
        if f"ops.{class_name}" in CLASS_NAMES:
            return None
        return UnsupportedLayerError(f"operation {shown} is not supported", HOW_TO_REPLACE)
    if is_unknown(entry, class_name):
        if class_name in CLASS_NAMES:
            found = f"layer class {shown} is not supported: it is {describe_custom_class(entry)}"
            return UnsupportedLayerError(found, f"supply it with --plugin: {_HOW_TO_BEGIN}")
        names = (entry.get("registered_name"), class_name, python_name(class_name))
        shipped = advise_shipped(names, parsing.command)
        advice = f"{shipped}; {_HOW_TO_SUPPLY}" if shipped else _HOW_TO_SUPPLY
        if class_name in _INSTEAD:
            advice = f"{_INSTEAD[class_name]}; {_HOW_TO_SUPPLY}"
        return UnsupportedLayerError(f"layer class {shown} is not supported", advice)
    return None


def is_unknown(entry: Mapping[str, Any], class_name: str) -> bool:
    """Tell whether a layer's class is none of Keras' own, and no operation."""
    problem = isinstance(entry.get("problem"), K2TError)  # of an operation
    if class_name in _REFUSED_CLASSES or problem or is_operation(entry):
        return False
    return class_name not in CLASS_NAMES or class_name in OPS or is_custom_class(entry)
