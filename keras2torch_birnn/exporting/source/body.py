"""The body of a generated ``forward`` as data, and the layers that it calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from keras2torch_birnn.exporting.source.code import Statement
from keras2torch_birnn.exporting.source.emission import Emission, Helper, Value
from keras2torch_birnn.spec import LayerSpec


@dataclass
class Body:
    """Statements of ``forward``, its arguments and results, the helpers of its functions.

    constants: attribute -> its tensor, a number or an array of the file's graph.
    """

    arguments: list[str] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    result: Value = None
    helpers: list[Helper] = field(default_factory=list)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    typed: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Layers:
    """The layers of a model by the names of their modules, and their source text.

    attributes: module -> attribute.
    """

    specs: Mapping[str, LayerSpec]
    emissions: Mapping[str, Emission]
    attributes: Mapping[str, str]
