"""State of one parse: problems, notes, facts beside the layers; policies of dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from keras2torch_birnn.errors import K2TError, UnsupportedOptionError, printable
from keras2torch_birnn.limits import MAX_SIZE
from keras2torch_birnn.readers.config.generations import plain_value
from keras2torch_birnn.schema.custom_layers import custom_layer_of
from keras2torch_birnn.spec import NO_CUT, Array, Cut, Generation, LayerPath, LayerSpec, Shape

# Old Embedding layers carry the dtype of their input in this place.
_PLAIN = (None, "float32", "float64", "int32", "int64")
_HALF = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16")


_INSTEAD = ": computed in float32, which is more exact"


@dataclass(frozen=True)
class DtypePolicy:
    """Meaning of a policy: a float dtype, a note for the user, or the reason of a refusal."""

    note: str = ""
    refusal: str = ""
    floats: str = ""


def read_policy(value: Any) -> DtypePolicy:
    """Parse a policy: its name, ``{"class_name": ..., "config": {"name": ...}}``, or None."""
    name = value
    if isinstance(value, Mapping):
        config = value.get("config")
        config = config if isinstance(config, Mapping) else {}
        name = config.get("name", value)
    if name in _PLAIN:
        return DtypePolicy(floats=name if name in ("float32", "float64") else "")
    if name in _HALF:
        return DtypePolicy(note=f"the file asks for {name}{_INSTEAD}")
    return DtypePolicy(refusal=f"dtype {printable(name)} is not supported: float32 is expected")


def notes_of_half_precision(notes: Iterable[str]) -> tuple[str, ...]:
    """Return those of a model's notes that are about policies of half precision."""
    return tuple(note for note in notes if note.endswith(_INSTEAD))


def mixture_note(floats: set[str], weights: np.dtype[Any]) -> list[str]:
    """Return a note if layers mix float32 and float64; half precision has its own note."""
    if floats < {"float32", "float64"}:
        return []
    return [f"layers of float32 and of float64: all of the model is computed in {weights}"]


def common_dtype(arrays: list[Array]) -> np.dtype[Any]:
    """Return the float dtype of a model with these weights."""
    double = any(array.dtype == np.float64 for array in arrays)
    return np.dtype(np.float64 if double else np.float32)


# ---- layers that read text -----------------------------------------------------------------------


# Layers that turn text into numbers. They are never converted: a model is cut behind them.


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


# ---- the state -----------------------------------------------------------------------------------


# State of one parse of an architecture: problems, notes and facts beside the layers.


@dataclass(frozen=True)
class UnknownClass:
    """A layer or cell of a class without a converter: its place, and its config as the file has it.

    ``kind``: "cell" for the cell of an RNN, "Lambda" for code in the file, else "layer".
    """

    class_name: str
    kind: Literal["layer", "cell", "Lambda"]
    place: str
    config: Mapping[str, Any]


@dataclass
class Parsing:
    """State of one parse; its steps add to ``problems`` and ``notes``.

    ``floats``: "float32", "float64", as far as layers say that they compute in it.
    ``of_tensorflow_1``: the places of wrapped layers that compute as in TensorFlow 1.
    ``penalties``: what of training is not carried over, by the places of the layers, see
    ``readers.config.options``.
    ``texts``: layers that read text or look up ids, by their places. ``unknown``: layers of classes
    without a converter. ``command``: that converts this file, for advice.
    """

    generation: Generation
    problems: list[K2TError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    floats: set[str] = field(default_factory=set)
    of_tensorflow_1: set[str] = field(default_factory=set)
    penalties: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, TextLayer] = field(default_factory=dict)
    unknown: list[UnknownClass] = field(default_factory=list)
    command: str = "k2t convert MODEL OUT"

    @property
    def half(self) -> bool:
        """Tell whether layers of the file compute in half precision."""
        return bool(notes_of_half_precision(self.notes))

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def refuse(self, finding: str, advice: str, place: str) -> None:
        """Add an option that is not supported."""
        self.problems.append(UnsupportedOptionError(finding, advice, place=place))


@dataclass(frozen=True)
class Whole:
    """A model before it was cut, by which the weights of its part are found.

    ``model``: all of its layers; ``left_out``: the paths of those whose weights cannot be named,
    because they are of no supported class or have an option that is not. ``texts``: the layers with
    a vocabulary that are gone, by place. ``cut``: where it was cut, by whole paths.
    """

    model: LayerSpec
    left_out: frozenset[LayerPath]
    texts: Mapping[str, TextLayer] = field(default_factory=dict)
    cut: Cut = NO_CUT
