"""Models: graphs of layers, and what enters them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from keras2torch_birnn.reference.context import Context, Equation, Result, passed_mask_goes_on
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.spec import (
    Array,
    Call,
    Graph,
    LayerSpec,
    Structure,
    TensorRef,
    leaves,
    map_structure,
)

# A tensor on its way: value and mask.
Pair = tuple[Array, Structure]

CALL_ARGUMENTS = frozenset({"initial_state", "mask", "ignore_mask", "keep_mask"})


def input_layer(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Cast an input to its dtype (``Functional._conform_to_reference_input``, 2.15)."""
    kind = str(layer.config["dtype"])
    if kind.startswith(("int", "uint")):
        return np.asarray(x).astype(np.int64), mask
    if kind == "bool":
        return np.asarray(x).astype(bool), mask
    return context.number(x), mask


def model(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
    """Compute ``Functional._run_internal_graph`` (2.15).

    Masks come in and go out with their tensors.
    """
    if layer.graph is None:
        raise TypeError(f"layer {layer.name} is a {layer.class_name} and has no graph")
    given = _in_order(layer.graph.inputs, inputs), _in_order(layer.graph.inputs, mask)
    return run(layer.graph, *given, context)


def run(
    graph: Graph, inputs: Sequence[Array], masks: Sequence[Structure], context: Context
) -> Result:
    """Run a graph on its inputs, in the order of the leaves of ``graph.inputs``."""
    refs = tuple(leaves(graph.inputs))
    if len(inputs) != len(refs):
        raise ValueError(f"{len(refs)} inputs are expected, found {len(inputs)}")
    tensors: dict[TensorRef, Pair] = {}
    for ref, value, mask in zip(refs, inputs, masks, strict=True):
        here = context.inside(ref.layer, ref.call)
        _keep(tensors, ref, here.apply(graph.layer(ref.layer), value, mask), here)
    last = {} if context.keep else _last_uses(graph)  # what is kept is not freed
    for place, call in enumerate(graph.calls):
        ref = TensorRef(call.layer, call.index)
        if ref not in tensors:  # inputs are there already
            here = context.inside(call.layer, call.index)
            _keep(tensors, ref, _run_call(graph.layer(call.layer), call, tensors, here), here)
        for used in last.get(place, ()):
            del tensors[used]
    return (
        map_structure(lambda ref: tensors[ref][0], graph.outputs),
        map_structure(lambda ref: _mask(ref, tensors), graph.outputs),
    )


def _last_uses(graph: Graph) -> dict[int, list[TensorRef]]:
    """Return the place of a call -> the tensors that nothing reads after it."""
    last: dict[TensorRef, int] = {}
    for place, call in enumerate(graph.calls):
        for ref in (*leaves(call.args), *leaves(call.kwargs)):
            if isinstance(ref, TensorRef):
                last[ref] = place
    kept = {ref for ref in leaves(graph.outputs) if isinstance(ref, TensorRef)}
    found: dict[int, list[TensorRef]] = {}
    for ref, place in last.items():
        if ref not in kept:
            found.setdefault(place, []).append(ref)
    return found


def _keep(
    tensors: dict[TensorRef, Pair],
    ref: TensorRef,
    result: Result,
    context: Context,
) -> None:
    """Store a call's outputs under their numbers and in the trace.

    Masks are dealt out from the first output on (``Layer._set_mask_metadata``, 2.15 and 3.15).
    """
    output, mask = result
    if context.keep:
        context.layers[context.path], context.masks[context.path] = output, mask
    for number, pair in enumerate(zip_longest(leaves(output), leaves(mask))):
        tensors[TensorRef(ref.layer, ref.call, number)] = pair


def _run_call(
    layer: LayerSpec, call: Call, tensors: dict[TensorRef, Pair], context: Context
) -> Result:
    """Run one call: find which mask the layer uses, and which one the next layers see."""
    options = {key: value for key, value in call.kwargs.items() if key not in CALL_ARGUMENTS}
    known = SCHEMA[layer.class_name].call_options if layer.class_name in SCHEMA else options
    if unknown := options.keys() - known.keys():
        raise ValueError(f"layer {layer.name}: unknown call arguments {sorted(unknown)}")
    context = context.with_fields(call_options=options, arguments=len(call.args))
    args = call.args[0] if len(call.args) == 1 else call.args
    inputs = map_structure(lambda leaf: _value(leaf, tensors), args)
    arriving = map_structure(lambda leaf: _mask(leaf, tensors), args)
    state = call.kwargs.get("initial_state")
    if state is not None:
        context = context.starting(tuple(_value(leaf, tensors) for leaf in leaves(state)))
    used = goes_on = arriving
    if call.kwargs.get("mask") is not None:
        used = map_structure(lambda leaf: _value(leaf, tensors), call.kwargs["mask"])
        if layer.graph is not None:  # ``Functional.call``: None leaves a tensor what it has
            used = goes_on = _either(used, arriving)
        elif len(call.args) > 1:  # query_mask, ...: Keras 3 fills in what was not passed
            used = _either(used, arriving)
        elif passed_mask_goes_on(context.generation):
            goes_on = used
    elif call.kwargs.get("ignore_mask"):
        used = map_structure(lambda leaf: None, arriving)
    output, mask = context.apply(layer, inputs, used)
    if goes_on is not used:  # Layer.compute_mask(inputs, mask) with another mask than Layer.call
        _, mask = context.aside().apply(layer, inputs, goes_on)
    return output, mask


def _either(passed: Structure, arriving: Structure) -> tuple[Structure, ...]:
    """Choose mask by mask the given one, or the arriving one where there is none."""
    pairs = zip(leaves(passed), leaves(arriving), strict=True)
    return tuple(second if first is None else first for first, second in pairs)


def _mask(leaf: Any, tensors: dict[TensorRef, Pair]) -> Structure:
    """Return the mask that the tensor still has at this use of it."""
    return tensors[leaf][1] if isinstance(leaf, TensorRef) and leaf.masked else None


def _value(leaf: Any, tensors: dict[TensorRef, Pair]) -> Any:
    return tensors[leaf][0] if isinstance(leaf, TensorRef) else leaf


def _in_order(inputs: Structure, structure: Structure) -> tuple[Any, ...]:
    """Return the leaves of ``structure`` in the order of ``inputs``' own; match dicts by key."""
    if isinstance(inputs, dict) and isinstance(structure, dict):
        return tuple(leaf for key in inputs for leaf in _in_order(inputs[key], structure[key]))
    return tuple(leaves(structure))


EQUATIONS: Mapping[str, Equation] = {
    "InputLayer": input_layer,
    "Sequential": model,
    "Functional": model,
}
