"""A layer together with the options of one of its calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.spec import LayerSpec


def as_called(layer: LayerSpec, keywords: Mapping[str, Any]) -> LayerSpec:
    """Return the layer with the options of a call beside its own, for rules that depend on both."""
    known = SCHEMA[layer.class_name].call_options if layer.class_name in SCHEMA else {}
    said = {key: value for key, value in keywords.items() if key in known}
    return replace(layer, config={**layer.config, **said}) if said else layer
