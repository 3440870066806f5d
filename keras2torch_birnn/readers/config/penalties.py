"""Regularizers and constraints: what Keras adds to a loss or does after a step, and torch does not.

They change no output, so a converted model computes the same without them; a trained one does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras2torch_birnn.errors import printable
from keras2torch_birnn.limits import MAX_LAYERS_IN_NOTE

_ENDINGS = ("_regularizer", "_constraint")


def penalties(class_name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a layer's config adds in training: ("kernel: L2", "bias: MaxNorm").

    Keras 1 writes ``W_regularizer``, later ones ``kernel_regularizer``; the values are a name, or
    ``class_name`` and ``config`` (in Keras 1 ``name`` and the options beside it).
    """
    if class_name == "ActivityRegularization":
        kind = _kind("L1L2", config)
        return (f"activity: {kind}",) if kind else ()
    found = []
    for key, value in config.items():
        target = next((key.removesuffix(end) for end in _ENDINGS if key.endswith(end)), "")
        kind = _named(value) if target else ""
        if kind:
            found.append(f"{printable(target)}: {printable(kind)}")
    if config.get("virtual_batch_size"):
        found.append("virtual batches")
    return tuple(found)


def _named(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        return ""
    name = str(value.get("class_name", value.get("name", "")))
    options = value.get("config", value)
    return _kind(name, options if isinstance(options, Mapping) else {})


def _kind(name: str, options: Mapping[str, Any]) -> str:
    """The name, or which of L1 and L2 an L1L2 is; nothing if both are zero."""
    factors = [key for key in ("l1", "l2") if key in options]
    if not factors:
        return name
    used = [key for key in factors if options[key]]
    return "".join(used).upper() if name in ("L1L2", "WeightRegularizer") or not used else name


def penalty_note(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Say in one line which layers lose what. ``found``: by the layer's place."""
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
