"""Check that a parsed graph can run: every call gets tensors, every input is fed.

Keras writes no other graphs; edited and damaged files have them.
"""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.schema import OPS, SCHEMA
from keras2torch_birnn.spec import Call, Graph, LayerSpec, Structure, TensorRef, leaves

# Layers that may be called with a structure of tensors; for others see their schema.
_STRUCTURES = ("TimeDistributed",)


def check_graph(graph: Graph, place: str) -> Graph:
    """Check that a graph can run, and return it.

    Raises:
        InvalidModelFileError: an input that nobody feeds, a model input that is no InputLayer, or
            a call whose arguments are not the tensors that the layer takes.
    """
    fed = [ref.layer for ref in leaves(graph.inputs)]
    for name in fed:
        found = graph.layer(name).class_name
        if found != "InputLayer":
            raise InvalidModelFileError(
                f"input_layers names {printable(name)}, which is no input but a {printable(found)}",
                "refused",
                place=place,
            )
    known = frozenset(fed)
    if len(known) < len(fed):
        twice = next(name for name in fed if fed.count(name) > 1)
        raise InvalidModelFileError(
            f"input_layers names {printable(twice)} twice", "refused", place=place
        )
    for call in graph.calls:
        layer = graph.layer(call.layer)
        if layer.class_name == "InputLayer":
            if layer.name not in known:
                raise InvalidModelFileError(
                    f"input {printable(layer.name)} is not one of input_layers",
                    "refused",
                    place=place,
                )
        elif layer.class_name in OPS:
            _check_operands(layer, call)
        elif layer.class_name in SCHEMA and layer.graph is None:
            _check_arguments(layer, call)
    return graph


def _check_operands(layer: LayerSpec, call: Call) -> None:
    """Refuse arguments of an operation that are not tensors or one list of them."""
    given: Structure = call.args[0] if len(call.args) == 1 else call.args
    operands = given if isinstance(given, tuple) else (given,)
    schema = OPS[layer.class_name]
    # sizes come after the tensors, where not all are numbers; a list has at least one tensor
    least = 1 if schema.listed else sum(name != "sizes" for name in schema.arguments)
    if len(operands) < least:
        raise InvalidModelFileError(
            f"{layer.class_name} called with {len(operands)} tensors", "refused", place=layer.place
        )
    for value in operands:
        if isinstance(value, Mapping | tuple):
            raise InvalidModelFileError(
                f"{layer.class_name} called with {printable(repr(value))} where a tensor is "
                "expected",
                "refused",
                place=layer.place,
            )


def _takes_one(layer: LayerSpec) -> bool:
    """Tell whether the wrapped layer takes one tensor; a model or a plugin's may take more."""
    while layer.class_name in _STRUCTURES:
        if "layer" not in layer.parts:  # a refused class, which is a problem already
            return False
        layer = layer.parts["layer"]
    schema = SCHEMA.get(layer.class_name)
    if schema is None or layer.graph is not None:
        return False
    return not schema.listed and len(schema.arguments) == 1


def _check_arguments(layer: LayerSpec, call: Call) -> None:
    schema = SCHEMA[layer.class_name]
    given: Structure = call.args
    if schema.listed and call.args and isinstance(call.args[0], tuple):
        given = call.args[0]
    if layer.class_name in _STRUCTURES:
        given = tuple(leaves(call.args))
    all_needed = schema.listed or len(schema.arguments) == 1
    if not given or (not schema.listed and len(call.args) > len(schema.arguments)):
        raise InvalidModelFileError(
            f"{layer.class_name} called with {len(given)} tensors", "refused", place=layer.place
        )
    if layer.class_name in _STRUCTURES and _takes_one(layer) and call.args != given:
        raise InvalidModelFileError(
            f"{layer.class_name} called with {printable(repr(call.args[0]))} where a tensor is "
            "expected",
            "refused",
            place=layer.place,
        )
    named = [leaf for key in ("mask", "initial_state") for leaf in leaves(call.kwargs.get(key))]
    for number, value in enumerate((*given, *named)):
        optional = number >= len(given) or not all_needed
        if not (isinstance(value, TensorRef) or (value is None and optional)):
            raise InvalidModelFileError(
                f"{layer.class_name} called with {printable(repr(value))} where a tensor is "
                "expected",
                "refused",
                place=layer.place,
            )
