"""Connect the layers of a Functional model: calls, masks, and the dtypes of its operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras2torch_birnn.readers.config.calls import resolve_masks
from keras2torch_birnn.readers.config.graphs import build_functional
from keras2torch_birnn.readers.config.operation_entries import is_operation
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.readers.operations import translate_layers
from keras2torch_birnn.readers.operations.infer_dtypes import infer_dtypes
from keras2torch_birnn.spec import Graph, LayerSpec


def translate_entries(entries: Sequence[Any]) -> list[Any]:
    """Translate the entries that are operations to the form that all dialects share."""
    return translate_layers(entries, is_operation)


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
    graph = build_functional(
        layers,
        entries,
        config,
        place,
        parsing.problems,
        # "3.0" is also what a text of Keras 3 counts as that names no version.
        counts_all_calls=parsing.generation.numbers[:2] in ((3, 0), (3, 1)),
    )
    graph = resolve_masks(graph, parsing.generation, parsing.problems, parsing.notes)
    return follow_dtypes(graph, parsing)


def follow_dtypes(graph: Graph, parsing: Parsing) -> Graph:
    """Infer the dtypes of operations, and of what enters a Pipeline."""
    half = any("computed in float32" in note for note in parsing.notes)
    return infer_dtypes(graph, parsing.generation, parsing.problems, half=half)
