"""Specs from flat settings: from the JSON text in an OUT file, and from options given by name."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.schema.custom_layers import LAMBDA
from keras2torch_birnn.spec import LayerSpec, ModelSpec, parse_model, split_settings

_OF_LAMBDA = frozenset({"makes_mask"})


def semantic_names(class_name: str) -> Container[str]:
    """Return the settings of a class that are no options of Keras; none of a plugin's class."""
    if class_name == LAMBDA:
        return _OF_LAMBDA
    return SCHEMA[class_name].semantics if class_name in SCHEMA else ()


def layer_of_settings(
    class_name: str, name: str, settings: Mapping[str, Any], **fields: Any
) -> LayerSpec:
    """Make a LayerSpec of settings in one mapping; ``fields``: its other fields."""
    config, semantics = split_settings(settings, semantic_names(class_name))
    return LayerSpec(class_name, name, config, semantics=semantics, **fields)


def model_from_json(data: Mapping[str, Any]) -> ModelSpec:
    """Build a ModelSpec from the parsed text of ``ModelSpec.to_json``, of any age.

    Raises:
        KeyError, TypeError, ValueError: the text is not what ``to_json`` writes.
    """
    return parse_model(data, semantic_names)
