"""Regularizers and constraints, which Keras applies in training and torch does not.

They do not change outputs of the converted model, but they do change its training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras2torch_birnn.errors import printable
from keras2torch_birnn.limits import MAX_LAYERS_IN_NOTE

_ENDINGS = ("_regularizer", "_constraint")


def penalties(class_name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """List the regularizers and constraints of a config: ("kernel: L2", "bias: MaxNorm").

    Keras 1 writes ``W_regularizer``, later ones ``kernel_regularizer``; the values are a name, or
    ``class_name`` and ``config`` (in Keras 1 ``name`` and the options beside it).
    """
    if class_name == "ActivityRegularization":
        kind = _kind("L1L2", config)
        return (f"activity: {kind}",) if kind else ()
    found = []
    for key, value in config.items():
        target = next((key.removesuffix(end) for end in _ENDINGS if key.endswith(end)), "")
        kind = _name(value) if target else ""
        if kind:
            found.append(f"{printable(target)}: {printable(kind)}")
    if config.get("virtual_batch_size"):
        found.append("virtual batches")
    return tuple(found)


def _name(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        return ""
    name = str(value.get("class_name", value.get("name", "")))
    options = value.get("config", value)
    return _kind(name, options if isinstance(options, Mapping) else {})


def _kind(name: str, options: Mapping[str, Any]) -> str:
    """Name a regularizer: an L1L2 as L1, L2 or L1L2; "" if both factors are zero."""
    factors = [key for key in ("l1", "l2") if key in options]
    if not factors:
        return name
    used = [key for key in factors if options[key]]
    return "".join(used).upper() if name in ("L1L2", "WeightRegularizer") or not used else name


def describe_penalties(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Describe in one line which layers lose which. ``found``: by the layer's path."""
    if not found:
        return []
    layers = [f"{printable(place)} ({', '.join(kinds)})" for place, kinds in found.items()]
    more = (
        [f"and {len(layers) - MAX_LAYERS_IN_NOTE} more layers"]
        if len(layers) > MAX_LAYERS_IN_NOTE
        else []
    )
    return [
        "training only: regularizers and constraints are not converted: "
        f"{', '.join(layers[:MAX_LAYERS_IN_NOTE] + more)}; add them to your own loss and steps"
    ]
