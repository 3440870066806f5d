"""Layers that turn text into numbers. They are never converted: a model is cut behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keras2torch_birnn.limits import MAX_SIZE
from keras2torch_birnn.readers.config.dialects import plain_value
from keras2torch_birnn.schema.custom_layers import custom_layer_of
from keras2torch_birnn.spec import LayerSpec, Shape

# Layers with a vocabulary; an IntegerLookup looks numbers up in it.
TEXT_CLASSES = frozenset({"StringLookup", "TextVectorization", "IntegerLookup"})
# Put before the class of a layer that is not supported: no table knows it then, and the groups of
# its weights keep their names, which are made of what is behind ">".
BARE = "left out>"


@dataclass(frozen=True)
class TextLayer:
    """A layer that reads text: its class and its options, as the file states them."""

    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def output_mode(self) -> str:
        """Form of the output: "int", "multi_hot", "count", "tf_idf" or "one_hot"."""
        return str(self.config.get("output_mode") or "int")

    @property
    def gives_text(self) -> bool:
        """True if ids go in and text comes out."""
        return bool(self.config.get("invert"))

    @property
    def dtype(self) -> str:
        """Dtype of the output."""
        return "int64" if self.output_mode == "int" else "float32"

    @property
    def output_shape(self) -> Shape | None:
        """Shape of what a TextVectorization gives, or a bag of looked-up words."""
        if self.output_mode == "int":
            length = self.config.get("output_sequence_length")
            known = (None, length if type(length) is int and 0 < length <= MAX_SIZE else None)
            return known if self.class_name == "TextVectorization" else None
        option = "max_tokens" if self.config.get("pad_to_max_tokens") else "vocabulary_size"
        width = self.config.get(option)
        return (None, width) if type(width) is int and 0 < width <= MAX_SIZE else None


def is_text_layer(layer: LayerSpec) -> bool:
    """Tell whether a layer of Keras' own reads text, bare or not; a plugin's does not count."""
    class_name = layer.class_name.removeprefix(BARE)
    return class_name in TEXT_CLASSES and custom_layer_of(layer) is None


def text_layer(class_name: str, config: Mapping[str, Any]) -> TextLayer:
    """Make one of a class and its config in any dialect."""
    return TextLayer(class_name, {str(k): plain_value(v) for k, v in config.items()})
