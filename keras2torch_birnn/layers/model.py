"""Models inside a wrapper; their inputs are arguments of the graph (``input_casts``)."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.layers.graph import graph_module
from keras2torch_birnn.layers.registry import SAME, Converter

CONVERTERS: Mapping[str, Converter] = dict.fromkeys(
    ("Sequential", "Functional"), Converter(graph_module, SAME)
)
