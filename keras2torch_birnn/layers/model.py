"""Models inside a wrapper; their inputs are arguments of the graph (``input_casts``)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from keras2torch_birnn.layers.graph import graph_module
from keras2torch_birnn.layers.registry import SAME, Converter
from keras2torch_birnn.spec import LayerSpec


def model(layer: LayerSpec) -> nn.Module:
    """Build a model inside a wrapper."""
    return graph_module(layer)


CONVERTERS: Mapping[str, Converter] = {
    "Sequential": Converter(model, SAME),
    "Functional": Converter(model, SAME),
    "Pipeline": Converter(model, SAME),
}
