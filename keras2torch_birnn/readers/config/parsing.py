"""State of one parse of an architecture: problems, notes and facts beside the layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from keras2torch_birnn.errors import (
    K2TError,
)
from keras2torch_birnn.readers.config.text_layers import TextLayer
from keras2torch_birnn.readers.config.unknown_classes import UnknownClass
from keras2torch_birnn.spec import Generation


@dataclass
class Parsing:
    """State of one parse; its steps add to ``problems`` and ``notes``.

    ``floats``: "float32", "float64", as far as layers say that they compute in it.
    ``of_tensorflow_1``: the places of wrapped layers that compute as in TensorFlow 1.
    ``penalties``: what of training is not carried over, by the places of the layers, see
    ``readers.config.penalties``.
    ``texts``: layers that read text or look up ids, by their places. ``built``: the input shapes
    that Keras 3 states for single layers, by their places. ``unknown``: layers of classes without a
    converter. ``command``: that converts this file, for advice.
    """

    generation: Generation
    problems: list[K2TError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    floats: set[str] = field(default_factory=set)
    of_tensorflow_1: set[str] = field(default_factory=set)
    penalties: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, TextLayer] = field(default_factory=dict)
    built: dict[str, Any] = field(default_factory=dict)
    unknown: list[UnknownClass] = field(default_factory=list)
    command: str = "k2t convert MODEL OUT"
