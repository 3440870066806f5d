"""Layers of plugins in a file: find them by class, and parse their configs.

Nothing in a config is resolved or run; of a Lambda only the arguments and declared shape are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from keras2torch_birnn.errors import invalid, printable
from keras2torch_birnn.readers.config.classes import is_custom_class
from keras2torch_birnn.readers.config.generations import (
    activation,
    has_effect,
    parse_shape,
    plain_value,
)
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.schema import REQUIRED, BadOptionError, Option
from keras2torch_birnn.schema.custom_layers import (
    LAMBDA,
    REGISTERED,
    class_name_of,
    custom_layer_of,
    output_count,
    python_name,
)
from keras2torch_birnn.spec import Generation, LayerPath, LayerSpec

# Keys of every Keras layer, besides those that never have an effect.
EVERY_LAYER = frozenset({"trainable", "dtype", "batch_size"})


def find_custom_class(entry: Mapping[str, Any], name: str, place: str) -> str | None:
    """Return the class that a plugin registered for this layer, or None.

    Old ``.h5`` files have ``class_name`` only, with the package before ``>`` if the class was
    registered; ``.keras`` files have ``module`` and ``registered_name`` as well.
    """
    class_name = str(entry["class_name"])
    if class_name == LAMBDA and (place in REGISTERED.lambdas or name in REGISTERED.lambdas):
        return LAMBDA
    if "module" in entry and not is_custom_class(entry):
        return None
    return class_name_of((entry.get("registered_name"), class_name, python_name(class_name)))


def parse_custom_layer(
    class_name: str, name: str, config: Any, path: LayerPath, parsing: Parsing
) -> LayerSpec:
    """Parse a plugin's layer, without weights."""
    layer = LayerSpec(class_name, name, {}, path=path)
    if not isinstance(config, Mapping):
        raise invalid("a layer's config is a list", layer.place)
    own = custom_layer_of(layer)
    options: dict[str, Any] = dict(config)
    semantics: dict[str, Any] = {}
    if class_name == LAMBDA:
        options = _lambda_options(config, layer.place)
        semantics["makes_mask"] = config.get("mask") is not None
    elif own is not None and own.options is not None:
        options = _parse_declared(layer, own.options, config, parsing)
    return replace(layer, config=options, semantics=semantics)


def _parse_declared(
    layer: LayerSpec, known: Mapping[str, Any], stated: Mapping[str, Any], parsing: Parsing
) -> dict[str, Any]:
    """Parse the options that the plugin declares, all explicit; others are problems."""
    shown = printable(python_name(layer.class_name))
    config = {key: plain_value(value) for key, value in stated.items()}
    options: dict[str, Any] = {"trainable": config.get("trainable", True) is not False}
    for key, option in known.items():
        try:
            options[key] = _value(key, option, config, parsing.generation)
        except BadOptionError as error:
            found = printable(repr(config.get(key)))
            parsing.refuse(
                f"{shown} option {key}={found} is not supported: {error}",
                "options= of its plugin allows no other",
                layer.place,
            )
    for key in config.keys() - known.keys() - EVERY_LAYER:
        if has_effect(layer.class_name, key):
            parsing.refuse(
                f"{shown} option {printable(key)}={printable(repr(config[key]))} is unknown",
                "its plugin must name it in options=",
                layer.place,
            )
    return options


def _value(key: str, option: Any, config: Mapping[str, Any], generation: Generation) -> Any:
    if not isinstance(option, Option):  # a plain default: any value of the file is accepted
        return config.get(key, option)
    if key not in config:
        if option.default is REQUIRED:
            raise BadOptionError("a value is expected")
        return option.default
    value = config[key]
    if key == "activation" or key.endswith("_activation"):
        value = activation(value, generation)
    return option.parse(value)


def _lambda_options(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Parse a Lambda's arguments and its declared output shape (no batch axis)."""
    arguments = config.get("arguments") or {}
    shape = plain_value(config.get("output_shape"))
    if config.get("output_shape_type", "raw") != "raw" or not _is_plain(shape):
        shape = None
    return {
        "trainable": config.get("trainable", True) is not False,
        # Keras 2 leaves in it the mask of the last call; a call says its own.
        "arguments": {str(k): plain_value(v) for k, v in arguments.items() if k != "mask"},
        "output_shape": shape and parse_shape(shape, place),
    }


def _is_plain(shape: Any) -> bool:
    return isinstance(shape, list) and all(size is None or type(size) is int for size in shape)


def note_custom_layers(root: LayerSpec, model: Mapping[str, Any]) -> list[str]:
    """Note that where some layers are the user's, other names may be, which no file can tell.

    model: the parsed architecture.
    """
    layers = (layer for layer in root.walk() if custom_layer_of(layer) is not None)
    names = dict.fromkeys(printable(python_name(layer.class_name)) for layer in layers)
    if not names:
        return []
    config = model.get("config")
    entries = config.get("layers") if isinstance(config, Mapping) else config
    stated = all("module" in entry for entry in entries) if isinstance(entries, list) else False
    what = "a function" if stated else "a class or function"
    return [
        f"{', '.join(names)}: of the user's own. If {what} of yours has a name of Keras' (as "
        "softmax), the file does not tell, and it is read as Keras' (docs/cli.md)"
    ]


def check_names(root: LayerSpec, parsing: Parsing) -> None:
    """Refuse a Lambda's name that two layers share: it is ambiguous which one a plugin means."""
    places: dict[str, list[str]] = {}
    for layer in root.walk():
        if layer.class_name == LAMBDA:
            known = layer.place if layer.place in REGISTERED.lambdas else layer.name
            places.setdefault(known, []).append(layer.place)
    for name, found in places.items():
        if len(found) > 1 and name in REGISTERED.lambdas:
            parsing.refuse(
                f"{len(found)} Lambda layers are called {printable(name)}",
                f"supply each by its path: {', '.join(map(printable, found[:5]))}",
                found[0],
            )


def check_steps(layer: LayerSpec, place: str, parsing: Parsing) -> None:
    """Refuse a plugin's layer with several outputs in a TimeDistributed."""
    if custom_layer_of(layer) is not None and output_count(layer) > 1:
        parsing.refuse(
            f"TimeDistributed over {printable(python_name(layer.class_name))}, which gives "
            "several tensors",
            "join them in the layer, or loop over the steps in the plugin",
            place,
        )
