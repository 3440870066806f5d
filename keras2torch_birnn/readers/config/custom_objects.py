"""Classes and functions in a file that are the user's own; Keras calls them custom objects.

A serialized class has a ``module`` in ``.keras`` files, and null if it was defined in a script or
notebook; ``.h5`` files have none. Functions of Keras are plain names, in every container of every
generation. Since 2.13, tf.keras writes an object for a function whose name it does not have, and
Keras 3 also for ``swish``. (``activations.serialize`` of tf.keras 2.13 to 2.15 and of Keras 3.0 to
3.15: an object if the name is none of its module's.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.errors import printable
from keras2torch_birnn.spec import Generation

KERAS_PACKAGES = ("keras", "tf_keras", "tensorflow")

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
