"""Connect the layers of a Sequential; read the shapes that layers state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras2torch_birnn.errors import invalid, printable
from keras2torch_birnn.limits import MAX_RANK, MAX_SIZE
from keras2torch_birnn.readers.config.dialects import plain_value
from keras2torch_birnn.spec import Call, Graph, LayerSpec, TensorRef, leaves


def build_sequential(
    layers: Sequence[LayerSpec],
    entries: Sequence[Any],
    declared: Mapping[str, Any],
    place: str,
) -> Graph:
    """Connect layers in a chain; without an InputLayer one is made from the first layer's config.

    Only the first layer's ``batch_input_shape`` is used: later ones are stale (TF 1.14 writes the
    model's own there; Keras 1 writes one for every Embedding).
    """
    if layers[0].class_name != "InputLayer":
        taken = {layer.name for layer in layers}
        name = f"{layers[0].name}_input"
        while name in taken:
            name += "_"
        config = {
            "trainable": True,
            "shape": _find_input_shape(layers[0], entries[0], declared),
            "dtype": "float32",
        }
        layers = (LayerSpec("InputLayer", name, config, place=name), *layers)
    if any(layer.class_name == "InputLayer" for layer in layers[1:]):
        raise invalid("an InputLayer between other layers", place)
    refs = [TensorRef(layer.name) for layer in layers]
    calls = [Call(layers[0].name, 0, ())]
    calls += [Call(layer.name, 0, (ref,)) for layer, ref in zip(layers[1:], refs, strict=False)]
    return Graph(tuple(layers), tuple(calls), (refs[0],), refs[-1])


def _find_input_shape(first: LayerSpec, entry: Any, declared: Mapping[str, Any]) -> Any:
    if first.graph is not None:
        return stated_input_shape(first.graph)
    config = entry["config"]
    for source, key in (
        (config, "batch_input_shape"),
        (config, "batch_shape"),
        (declared, "build_input_shape"),
    ):
        if isinstance(source, Mapping) and source.get(key) is not None:
            return parse_shape(source[key], first.place)
    return None


def stated_input_shape(graph: Graph) -> Any:
    """Return the shape of a graph's first input; None if it states none, or its class is refused.

    A user's class can have the name InputLayer.
    """
    ref = next(leaves(graph.inputs))
    return graph.layer(ref.layer).config.get("shape")


def parse_shape(value: Any, place: str) -> tuple[int | None, ...]:
    """Parse a shape of a config: integers and null, at most ``MAX_RANK`` of them."""
    value = plain_value(value)
    if (
        not isinstance(value, list | tuple)
        or not 1 <= len(value) <= MAX_RANK
        or not all(v is None or (type(v) is int and 0 < v <= MAX_SIZE) for v in value)
    ):
        raise invalid(f"{printable(value)} is not the shape of an input", place)
    return tuple(value)
