"""State of one parse of an architecture: problems, notes and facts beside the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from keras2torch_birnn.errors import K2TError, UnsupportedOptionError
from keras2torch_birnn.readers.config.policies import notes_of_half_precision
from keras2torch_birnn.readers.config.text_layers import TextLayer
from keras2torch_birnn.spec import NO_CUT, Cut, Generation, LayerSpec


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
    ``readers.config.penalties``.
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

    ``model``: all of its layers; ``left_out``: the places of those whose weights cannot be named,
    because they are of no supported class or have an option that is not. ``texts``: the layers with
    a vocabulary that are gone, by place. ``cut``: where it was cut, by whole paths.
    """

    model: LayerSpec
    left_out: frozenset[str]
    texts: Mapping[str, TextLayer] = field(default_factory=dict)
    cut: Cut = NO_CUT
