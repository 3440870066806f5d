"""Class of an entry: the user's own, an operation, refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.errors import K2TError, UnsupportedLayerError, printable
from keras2torch_birnn.schema import CLASS_NAMES, OPS
from keras2torch_birnn.schema.custom_layers import LAMBDA, advise_shipped, python_name
from keras2torch_birnn.spec import Generation

KERAS_PACKAGES = ("keras", "tf_keras", "tensorflow")
# A subclassed model is code; ``call`` on an Input leaves its layers one by one in a functional one.
HOW_TO_WRAP = (
    "wrap it and save again: x = keras.Input(shape=..., dtype=...); "
    'keras.Model(x, model.call(x)).save("wrapped.keras"); or take its arrays with k2t.weights, for '
    "a torch model of your own"
)
HOW_TO_REPLACE = "replace it by a layer of Keras, or by one of your own, given with --plugin"

_FIRST = "softmax elu softplus softsign relu tanh sigmoid hard_sigmoid linear"
# Activations of the generations whose files hold plain names of the user's functions, too, with
# the first version (of tf.keras: of its Keras) that has them. Keras 3 marks all that it lacks.
_SINCE: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "keras1": dict.fromkeys(_FIRST.split(), (1, 0)),
    "keras2": dict.fromkeys(f"{_FIRST} selu exponential".split(), (2, 0)),
    "tf.keras": {
        **dict.fromkeys(f"{_FIRST} selu exponential".split(), (2, 0)),
        **dict.fromkeys("LeakyReLU ELU ReLU Softmax".split(), (2, 0)),  # layers by their names
        "swish": (2, 3),
        "gelu": (2, 4),
        # (2.4 does not have them, 2.6 does)
        **dict.fromkeys("silu leaky_relu relu6 log_softmax".split(), (2, 5)),
        "mish": (2, 13),
    },
}


def is_custom_class(entry: Mapping[str, Any]) -> bool:
    """Tell whether a file says of a class that it is none of Keras', whatever it is called."""
    return "module" in entry and str(entry["module"]).partition(".")[0] not in KERAS_PACKAGES


def is_custom_function(entry: Mapping[str, Any]) -> bool:
    """Tell whether this object is a function, outside of what was compiled: one of the user's."""
    return entry.get("class_name") == "function"


def describe_custom_class(entry: Mapping[str, Any]) -> str:
    """Describe in words where a class comes from, as the file says it."""
    module, registered = entry.get("module"), entry.get("registered_name")
    where = "a script or notebook" if module is None else f"the module {printable(str(module))}"
    known = f", registered as {printable(str(registered))}" if registered is not None else ""
    said = f", from {where}{known}" if "module" in entry else ""
    return f"a class of the user's own, not that of Keras{said}"


def lacks_activation(generation: Generation, name: str) -> bool:
    """Tell whether this Keras has no activation of a name that it wrote into a file."""
    known = _SINCE.get(generation.name)
    return known is not None and generation.numbers < known.get(name, (3, 0))


# ---- operations ----------------------------------------------------------------------------------


# Tell an operation of Keras 3 from a layer, by its entry in a file.


# The module of operations of any dialect, once they are translated.
TRANSLATED = "k2t operation"
OPERATION_MODULES = (
    TRANSLATED, "keras.src.ops", "keras.ops", "keras.src.activations", "keras.activations",
)  # fmt: skip

# Layers of Keras 3 whose config leaves ``trainable`` out; no operation has their names.
_WITHOUT_TRAINABLE = frozenset(
    "SpatialDropout1D SpatialDropout2D SpatialDropout3D Discretization HashedCrossing "
    "Pipeline".split()
)


def is_operation(entry: Mapping[str, Any]) -> bool:
    """Tell whether an entry is an operation of Keras 3, not a layer of the same name.

    The module says so in a ``.keras`` file. In an ``.h5`` there is none, but nearly every layer of
    Keras 3 has ``trainable`` in its config and no operation has; ``inbound_nodes`` are dicts in
    Keras 3.
    """
    module, nodes, config = entry.get("module"), entry.get("inbound_nodes"), entry.get("config")
    if isinstance(module, str):
        return module.startswith(OPERATION_MODULES)
    dict_nodes = isinstance(nodes, list) and any(isinstance(n, Mapping) for n in nodes)
    bare = isinstance(config, Mapping) and "trainable" not in config
    class_name = entry.get("class_name")
    named = isinstance(class_name, str) and class_name not in _WITHOUT_TRAINABLE
    return dict_nodes and bare and named


# ---- refused classes -----------------------------------------------------------------------------


# Layer classes that cannot be converted: why, and what to do instead.


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


def find_refusal(entry: Mapping[str, Any], class_name: str, command: str) -> K2TError | None:
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
        shipped = advise_shipped(names, command)
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
