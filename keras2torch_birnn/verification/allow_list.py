"""Allow-list: only files that name nothing but built-in Keras objects are given to live Keras.

k2t itself looks up only the names in its own tables. Keras looks up any: an initializer, ignored
here because it cannot change the numbers, may name any function (CVE-2025-1550), and loading an
``.h5`` with a Lambda runs its bytecode. ``k2t verify`` runs Keras in a child process, which has the
user's own rights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from keras2torch_birnn.errors import printable
from keras2torch_birnn.readers.config.classes import (
    OPERATION_MODULES,
    is_custom_class,
    is_custom_function,
)
from keras2torch_birnn.readers.operations import translation
from keras2torch_birnn.schema import CLASS_NAMES

# Other classes of Keras that occur in configurations; none of them takes code or a path.
_PLAIN = frozenset(
    "Zeros Ones Constant RandomNormal RandomUniform TruncatedNormal VarianceScaling Orthogonal "
    "Identity STFT GlorotNormal GlorotUniform HeNormal HeUniform LecunNormal LecunUniform "
    "OrthogonalInitializer L1 L2 L1L2 OrthogonalRegularizer MaxNorm NonNeg UnitNorm MinMaxNorm "
    "Policy DTypePolicy FloatDTypePolicy "
    "LSTMCell GRUCell SimpleRNNCell StackedRNNCells RNN "
    "TensorShape __tuple__ __keras_tensor__ __numpy__ __typespec__ CompiledLossAndMetrics "
    "__tensor__ __slice__ __ellipsis__".split()
)
# Not read: the model is loaded without its training configuration.
_UNREAD = frozenset({"compile_config", "training_config"})


def foreign_name(model: Mapping[str, Any]) -> str | None:
    """Return a name in a parsed architecture that is not built-in Keras, printable, or None."""
    for found in _objects(model):
        class_name, module = found["class_name"], found.get("module")
        if is_custom_function(found):
            return printable(f"the function {found.get('config')}")
        if is_custom_class(found) or not isinstance(class_name, str):
            return printable(class_name if module is None else f"{module}.{class_name}")
        known = class_name in CLASS_NAMES or class_name in _PLAIN
        if not (known or _is_known_operation(class_name, module)):
            return printable(class_name)
    return None


def _is_known_operation(class_name: str, module: Any) -> bool:
    """Tell whether this is an operation of Keras 3 that k2t converts: none takes code or a path.

    Others do: ``Map``, ``Scan`` and ``Cond`` are given functions.
    """
    parents = [f"{parent}." for parent in OPERATION_MODULES]
    return class_name in translation.KERAS3_FORMS and f"{module}.".startswith(tuple(parents))


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every serialized object, also nested ones; JSON is at most 200 levels deep."""
    if isinstance(value, Mapping):
        if "class_name" in value:
            yield value
        for key, inner in value.items():
            if key not in _UNREAD:
                yield from _objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _objects(inner)
