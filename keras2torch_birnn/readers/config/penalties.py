"""Regularizers and constraints in the configs of all generations; they act in training only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keras2torch_birnn.errors import printable
from keras2torch_birnn.limits import MAX_LAYERS_IN_NOTE
from keras2torch_birnn.readers.config.classes import is_custom_class, is_custom_function
from keras2torch_birnn.readers.config.dialects import plain_value
from keras2torch_birnn.schema import CLASSES
from keras2torch_birnn.schema.options import BadOptionError
from keras2torch_birnn.schema.penalties import (
    ACTIVITY,
    CONSTRAINT,
    REGULARIZER,
    is_known,
    parse_penalty,
    rows_of,
)
from keras2torch_birnn.spec import Generation, LayerSpec

# Names and shortcuts of Keras, in lower case without underscores -> name, defaults of the shortcut.
_L1, _L2 = {"l1": 0.01}, {"l2": 0.01}
_NAMES: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "l1": ("L1L2", _L1),
    "l2": ("L1L2", _L2),
    "l1l2": ("L1L2", {}),
    "weightregularizer": ("L1L2", {}),  # Keras 1
    "activityregularizer": ("L1L2", {}),
    "maxnorm": ("MaxNorm", {}),
    "nonneg": ("NonNeg", {}),
    "unitnorm": ("UnitNorm", {}),
    "minmaxnorm": ("MinMaxNorm", {}),
}
_SHORTCUTS = {"l1_l2": _L1 | _L2}
_RENAMED = {"m": "max_value", "low": "min_value", "high": "max_value"}  # Keras 1
# Keras 1 keeps kernels of these in other layouts, so axes of its constraints are others, too.
_VECTORS = ("Dense", "Embedding", "LSTM", "GRU", "SimpleRNN")


def read_training(
    class_name: str, config: Mapping[str, Any], generation: Generation
) -> dict[str, dict[str, Any]]:
    """Read the regularizers and constraints of a config, as ``LayerSpec.training`` holds them.

    Keras 1 writes ``W_regularizer``, later ones ``kernel_regularizer``; the values are a name, or
    ``class_name`` and ``config`` (in Keras 1 ``name`` and the options beside it).
    """
    found: dict[str, dict[str, Any]] = {}
    given = dict(config)
    if class_name == "ActivityRegularization":
        options = {key: config[key] for key in ("l1", "l2") if key in config}
        given[ACTIVITY] = {"class_name": "L1L2", "config": options}
    for key, value in given.items():
        if key.endswith((REGULARIZER, CONSTRAINT)) and isinstance(value, str | Mapping):
            one = _read(key, value)
            if generation.name == "keras1" and "axis" in one and class_name not in _VECTORS:
                one = {"name": one["name"] + " of Keras 1"}
            if one.get("l1", True) or one.get("l2", True):  # all but an L1L2 of nothing
                found[key] = one
    return found


def _read(key: str, value: str | Mapping[str, Any]) -> dict[str, Any]:
    written, options = _split(value)
    plain = written.replace("_", "").lower()
    name, defaults = _NAMES.get(plain, ("", {}))
    if name not in rows_of(key):  # a constraint is no regularizer
        return {"name": printable(written)}
    shortcut = _SHORTCUTS.get(written, defaults) if isinstance(value, str) else defaults
    named = {_RENAMED.get(k, k): plain_value(v) for k, v in {**shortcut, **options}.items()}
    try:
        return parse_penalty(key, name, {k: 0.0 if v is None else v for k, v in named.items()})
    except BadOptionError as error:
        return {"name": f"{printable(written)} ({error})"}


def _split(value: str | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Split a serialized object into its name and its options."""
    if isinstance(value, str):
        return value, {}
    function = is_custom_function(value)
    own = function or is_custom_class(value) or value.get("registered_name") is not None
    name = str(value.get("config" if function else "class_name", value.get("name", "")))
    options = value.get("config", {k: v for k, v in value.items() if k != "name"})
    return f"Custom>{name}" if own else name, options if isinstance(options, Mapping) else {}


def list_unknown(config: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    """List what a layer does in training that is not carried over."""
    unknown = [
        f"{key.removesuffix(REGULARIZER).removesuffix(CONSTRAINT)}: {value['name']}"
        for key, value in training.items()
        if not is_known(key, value)
    ]
    return [*unknown, "virtual batches"] if config.get("virtual_batch_size") else unknown


def describe_penalties(by_place: Mapping[str, Sequence[str]]) -> list[str]:
    """Describe in one line which layers lose which. ``by_place``: by the layer's path."""
    if not by_place:
        return []
    layers = [f"{printable(place)} ({', '.join(kinds)})" for place, kinds in by_place.items()]
    shown, more = layers[:MAX_LAYERS_IN_NOTE], len(layers) - MAX_LAYERS_IN_NOTE
    shown += [f"and {more} more layers"] if more > 0 else []
    return [
        f"training only: not converted: {', '.join(shown)}; add them to your own loss and steps"
    ]


def describe_augmentation(root: LayerSpec) -> Iterator[str]:
    """Yield a note if training in Keras changes images that the converted model leaves alone."""
    found = {
        layer.class_name: None
        for layer in root.walk()
        if layer.class_name in CLASSES["augmentation"]
    }
    if found:
        yield (
            f"in training Keras changes images at random ({', '.join(found)}): the converted model "
            "never does; change the images of your training data instead"
        )
