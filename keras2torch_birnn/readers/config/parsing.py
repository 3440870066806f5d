"""State of one parse of an architecture: what its steps find beside the layers."""

from __future__ import annotations

from dataclasses import dataclass, field

from keras2torch_birnn.errors import (
    K2TError,
)
from keras2torch_birnn.spec import Generation


@dataclass
class Parsing:
    """State of one parse; its steps add to ``problems`` and ``notes``.

    ``floats``: "float32", "float64", as far as layers say that they compute in it.
    ``of_tensorflow_1``: the places of wrapped layers that compute as in TensorFlow 1.
    ``penalties``: what layers add in training, by their places, see ``readers.config.penalties``.
    """

    generation: Generation
    problems: list[K2TError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    floats: set[str] = field(default_factory=set)
    of_tensorflow_1: set[str] = field(default_factory=set)
    penalties: dict[str, tuple[str, ...]] = field(default_factory=dict)
