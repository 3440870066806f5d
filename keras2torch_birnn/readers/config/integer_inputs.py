"""Integers and bools as inputs of layers that compute with them otherwise than with floats."""

from __future__ import annotations

from keras2torch_birnn.errors import K2TError, UnsupportedOptionError
from keras2torch_birnn.schema.dtype_flow import refusals
from keras2torch_birnn.spec import Generation, LayerSpec


def check_integer_inputs(root: LayerSpec, generation: Generation, problems: list[K2TError]) -> None:
    """Refuse layers whose outputs would differ in the converted model, which computes in floats."""
    for layer in root.walk():
        if layer.graph is None:
            continue
        for place, reason in refusals(layer.graph, generation):
            problems.append(
                UnsupportedOptionError(
                    f"{reason}; not supported", "cast to float32 before", place=place
                )
            )
