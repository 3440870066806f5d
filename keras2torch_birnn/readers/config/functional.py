"""Connect the layers of a Functional model: calls, masks, and the dtypes of its operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras2torch_birnn.readers.config.calls import resolve_masks
from keras2torch_birnn.readers.config.graphs import build_functional
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.readers.operations.infer_dtypes import infer_dtypes
from keras2torch_birnn.spec import Graph, LayerSpec


def connect(
    layers: Sequence[LayerSpec],
    entries: Sequence[Any],
    config: Mapping[str, Any],
    place: str,
    parsing: Parsing,
) -> Graph:
    """Connect the layers by the calls that their entries hold.

    Raises:
        InvalidModelFileError: a broken graph.
    """
    graph = build_functional(layers, entries, config, place, parsing)
    return infer_dtypes(resolve_masks(graph, parsing), parsing)
