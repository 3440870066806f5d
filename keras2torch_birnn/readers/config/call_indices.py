"""Indices of the calls of each layer, which Keras versions count in different ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from keras2torch_birnn.errors import UnsupportedOptionError, printable
from keras2torch_birnn.spec import LayerSpec, Structure, TensorRef, map_structure, tensors

# Arguments and keywords of one call; the calls of a model by layer and index.
NodeCall: TypeAlias = tuple[tuple[Structure, ...], dict[str, Structure]]
Nodes: TypeAlias = dict[tuple[str, int], NodeCall]


def renumber_nested_calls(
    nodes: Mapping[tuple[str, int], NodeCall],
    outputs: Structure,
    by_name: Mapping[str, LayerSpec],
    *,
    dict_nodes: bool,
) -> tuple[Nodes, Structure]:
    """Renumber the calls of nested models from 0, like those of all other layers.

    Call 0 of a nested model is the one on its own input, which files do not list. Files with
    lists of nodes then count from 1: the highest index in use equals the number of calls. Keras 3
    does so in ``output_layers`` only, and for Functional models only.
    """
    nested = {n for n, layer in by_name.items() if layer.graph is not None}
    if not nested:
        return dict(nodes), outputs
    if dict_nodes:
        functional = {n for n in nested if by_name[n].class_name == "Functional"}
        return dict(nodes), _renumber(outputs, lambda ref: ref.call - (ref.layer in functional))
    calls = Counter(name for name, _ in nodes)
    highest: dict[str, int] = {}
    for ref in tensors((tuple(nodes.values()), outputs)):
        highest[ref.layer] = max(ref.call, highest.get(ref.layer, 0))
    from_one = {n for n in nested if highest.get(n) == calls[n]}

    def from_zero(ref: TensorRef) -> int:
        return ref.call - (ref.layer in from_one)

    return _renumber_nodes(nodes, from_zero), _renumber(outputs, from_zero)


def check_outside_calls(nodes: Nodes, outputs: Structure, place: str) -> None:
    """Refuse calls of layers that were also called outside of this model.

    Keras 3.0 and 3.1 list the calls that belong to the model, and count every call ever made
    between layers (``serialize_node``). Every call of a model is used, and others are not listed.

    Raises:
        UnsupportedOptionError: the calls that are used are not those that are listed.
    """
    calls = Counter(name for name, _ in nodes)
    used: dict[str, set[int]] = {name: set() for name in calls}
    for ref in tensors((tuple(nodes.values()), outputs)):
        used.setdefault(ref.layer, set()).add(ref.call)
    for name, found in used.items():
        if found and found != set(range(calls[name])):
            raise UnsupportedOptionError(
                f"layer {printable(name)} was also called outside of this model, and Keras before "
                "3.2 counts those calls, too",
                "save the model from a program that calls its layers in it alone",
                place=place,
            )


def _renumber(structure: Structure, number: Callable[[TensorRef], int]) -> Any:
    return map_structure(
        lambda leaf: replace(leaf, call=number(leaf)) if isinstance(leaf, TensorRef) else leaf,
        structure,
    )


def _renumber_nodes(
    nodes: Mapping[tuple[str, int], NodeCall], number: Callable[[TensorRef], int]
) -> Nodes:
    return {
        key: (_renumber(args, number), _renumber(kwargs, number))
        for key, (args, kwargs) in nodes.items()
    }
