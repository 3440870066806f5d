"""Dtypes of inputs that a layer in torch does not compute with as Keras does."""

from __future__ import annotations

from collections.abc import Iterator

from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.schema.custom_layers import custom_layer_of
from keras2torch_birnn.schema.dtype_flow import (
    Node,
    keeps_dtype,
    refusals,
    without_time_distributed,
)
from keras2torch_birnn.spec import Graph, LayerSpec, tensors

# Dtypes of a Keras Input that no tensor of real numbers holds.
_NO_NUMBERS = frozenset({"string", "complex64", "complex128", "resource", "variant"})


def check_input_dtypes(root: LayerSpec, parsing: Parsing) -> None:
    """Refuse layers that read text, or whose outputs would differ for integers or bools.

    The converted model computes in floats.
    """
    for layer in root.walk():
        if layer.graph is None:
            continue
        for place, reason in refusals(layer.graph, parsing.generation):
            parsing.refuse(f"{reason}; not supported", "cast to float32 before", place)
        for place, found in _without_numbers(layer.graph):
            parsing.refuse(
                f"{found}; not supported", "turn it into numbers before the model", place
            )


def _without_numbers(graph: Graph) -> Iterator[tuple[str, str]]:
    """Yield (place, what) of each layer that computes with text, and of each output that is text.

    Keras lets text pass through layers that do not compute, and hashes or looks it up in others.
    """
    dtypes: dict[Node, str] = {}
    for call in graph.calls:
        node, layer = (call.layer, call.index), graph.layer(call.layer)
        own = layer.config.get("dtype")
        if layer.class_name == "InputLayer" and isinstance(own, str) and own in _NO_NUMBERS:
            dtypes[node] = own
            continue
        read = [dtypes.get((ref.layer, ref.call)) for ref in tensors((call.args, call.kwargs))]
        found = next((dtype for dtype in read if dtype is not None), None)
        inner = without_time_distributed(layer)
        if found is None or inner.graph is not None or custom_layer_of(inner) is not None:
            continue  # (the inputs of a model inside have a dtype of their own)
        if keeps_dtype(inner):
            dtypes[node] = found
        else:
            name = inner.class_name.removeprefix("ops.")
            yield inner.place, f"{name} computes with an input of dtype {found}"
    for ref in tensors(graph.outputs):
        if (ref.layer, ref.call) in dtypes:
            place = graph.layer(ref.layer).place
            yield place, f"an output of the model has dtype {dtypes[ref.layer, ref.call]}"
