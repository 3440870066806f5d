"""Indices of the calls of each layer, which Keras versions count in different ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from keras2torch_birnn.errors import InvalidModelFileError, printable
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


def renumber_outside_calls(
    nodes: Mapping[tuple[str, int], NodeCall],
    outputs: Structure,
    place: str,
) -> Nodes:
    """Renumber the calls of layers that were also called outside of this model.

    Keras 3.0 and 3.1 list the calls that belong to the model, and ``output_layers`` uses indices
    into that list; between layers they count every call ever made (``serialize_node``), and cannot
    open such a file again. Every call of a model is used and indices keep their order, so the
    calls are known if as many are named as are listed, or as are listed and no output.
    """
    calls = Counter(name for name, _ in nodes)
    between, ends = _used_calls(tuple(nodes.values())), _used_calls(outputs)
    own: dict[tuple[str, int], int] = {}
    for name, named in between.items():
        listed = set(range(calls[name]))
        given = ends.get(name, set())
        if named | given == listed:
            continue
        meant = listed if len(named) == len(listed) else listed - given
        if len(named) != len(meant):
            raise InvalidModelFileError(
                f"calls {', '.join(map(str, sorted(named)[:5]))} of layer {printable(name)} are "
                f"used where {len(listed)} are listed: Keras before 3.2 also counts calls outside "
                "of the model",
                "save the model from a program that calls its layers in it alone",
                place=place,
            )
        own.update(((name, a), b) for a, b in zip(sorted(named), sorted(meant), strict=True))

    return _renumber_nodes(nodes, lambda ref: own.get((ref.layer, ref.call), ref.call))


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


def _used_calls(structure: Structure) -> dict[str, set[int]]:
    """Map each layer to the indices of its calls whose outputs are used."""
    found: dict[str, set[int]] = {}
    for ref in tensors(structure):
        found.setdefault(ref.layer, set()).add(ref.call)
    return found
