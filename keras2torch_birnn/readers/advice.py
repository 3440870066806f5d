"""Advice of refusals that several readers share."""

from __future__ import annotations

import re

# A subclassed model is code; ``call`` on an Input leaves its layers one by one in a functional one.
HOW_TO_WRAP = (
    "wrap it and save again: x = keras.Input(shape=..., dtype=...); "
    'keras.Model(x, model.call(x)).save("wrapped.keras"); or take its arrays with k2t.weights, for '
    "a torch model of your own"
)
HOW_TO_REPLACE = "replace it by a layer of Keras, or by one of your own, given with --plugin"
QUANTIZED = "quantize() changes the model for good: save it before"
HOW_TO_TURN_YAML = 'write it as JSON, as docs/cli.md shows ("An architecture in YAML")'
# The beginning of an architecture in YAML.
YAML = rb"(class_name|backend|config|keras_version):"


def is_yaml(text: str) -> bool:
    """Tell whether a text begins as an architecture in YAML does."""
    return re.match(YAML, text.encode()) is not None


# Said of a file that k2t wrote, where a Keras model is expected.
CONVERTED = (
    "a model that k2t converted already",
    "give the Keras model here; k2t.load, `k2t verify OUT` and `k2t export OUT` take this file",
)
