"""Graphs of layers: models, models inside models, and a layer applied to every time step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np

from keras2torch_birnn.reference.context import (
    Context,
    fixed_batch_keeps_mask,
    mask_enters_time_distributed,
    passed_mask_goes_on,
)
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


def model(
    layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> tuple[Structure, Structure]:
    """``Functional._run_internal_graph`` (2.15): masks come in and go out with their tensors."""
    if layer.graph is None:
        raise TypeError(f"layer {layer.name} is a {layer.class_name} and has no graph")
    given = _in_order(layer.graph.inputs, inputs), _in_order(layer.graph.inputs, mask)
    return run(layer.graph, *given, context)


def run(
    graph: Graph, inputs: Sequence[Array], masks: Sequence[Structure], context: Context
) -> tuple[Structure, Structure]:
    """Run a graph on its inputs, in the order of the leaves of ``graph.inputs``."""
    refs = tuple(leaves(graph.inputs))
    if len(inputs) != len(refs):
        raise ValueError(f"{len(refs)} inputs are expected, found {len(inputs)}")
    tensors: dict[TensorRef, Pair] = {}
    for ref, value, mask in zip(refs, inputs, masks, strict=True):
        here = context.inside(ref.layer, ref.call)
        _keep(tensors, ref, here.apply(graph.layer(ref.layer), value, mask), here)
    for call in graph.calls:
        ref = TensorRef(call.layer, call.index)
        if ref not in tensors:  # inputs are there already
            here = context.inside(call.layer, call.index)
            _keep(tensors, ref, _run_call(graph.layer(call.layer), call, tensors, here), here)
    return (
        map_structure(lambda ref: tensors[ref][0], graph.outputs),
        map_structure(lambda ref: _mask(ref, tensors), graph.outputs),
    )


def _keep(
    tensors: dict[TensorRef, Pair],
    ref: TensorRef,
    result: tuple[Structure, Structure],
    context: Context,
) -> None:
    """Store a call's outputs under their numbers and in the trace.

    Masks are dealt out from the first output on (``Layer._set_mask_metadata``, 2.15 and 3.15).
    """
    output, mask = result
    context.layers[context.path], context.masks[context.path] = output, mask
    for number, pair in enumerate(zip_longest(leaves(output), leaves(mask))):
        tensors[replace(ref, output=number)] = pair


def _run_call(
    layer: LayerSpec, call: Call, tensors: dict[TensorRef, Pair], context: Context
) -> tuple[Structure, Structure]:
    """One call: which mask the layer uses, and which one goes on to the next layers."""
    options = {key: value for key, value in call.kwargs.items() if key not in CALL_ARGUMENTS}
    known = SCHEMA[layer.class_name].call_options if layer.class_name in SCHEMA else options
    if unknown := options.keys() - known.keys():
        raise ValueError(f"layer {layer.name}: unknown call arguments {sorted(unknown)}")
    context = replace(context, call_options=options, arguments=len(call.args))
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


def _either(given: Structure, arriving: Structure) -> tuple[Structure, ...]:
    """Mask by mask the given one, the arriving one where there is none."""
    pairs = zip(leaves(given), leaves(arriving), strict=True)
    return tuple(second if first is None else first for first, second in pairs)


def _mask(leaf: Any, tensors: dict[TensorRef, Pair]) -> Structure:
    """The mask that the tensor still has at this use of it."""
    return tensors[leaf][1] if isinstance(leaf, TensorRef) and leaf.masked else None


def _value(leaf: Any, tensors: dict[TensorRef, Pair]) -> Any:
    return tensors[leaf][0] if isinstance(leaf, TensorRef) else leaf


def _in_order(inputs: Structure, given: Structure) -> tuple[Any, ...]:
    """The leaves of ``given`` in the order of those of ``inputs``; dicts are matched by key."""
    if isinstance(inputs, dict) and isinstance(given, dict):
        return tuple(leaf for key in inputs for leaf in _in_order(inputs[key], given[key]))
    return tuple(leaves(given))


def time_distributed(
    layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> tuple[Structure, Structure]:
    """``TimeDistributed.call`` and ``.compute_mask``: the inner layer on (B, ...) at every step.

    The mask goes in step by step, or passes by (``_mask_passes_by``). Stateful inner layers are
    carried from step to step by Keras 3.15; before, ``keras.backend.rnn`` runs the first step
    twice, which is refused here.
    """
    inner = layer.parts["layer"]
    if context.states is not None and context.generation.name != "keras3":
        if any(part.config.get("stateful") for part in inner.walk()):
            raise ValueError(f"layer {layer.name}: a stateful layer inside TimeDistributed")
    inside_mask = None if _mask_passes_by(layer, context) else mask
    steps = next(leaves(inputs)).shape[1]
    results, traces = [], []
    for t in range(steps):
        trace = replace(context, layers={}, masks={}, arguments=1)
        step_inputs, step_mask = _at(inputs, t), _at(inside_mask, t)
        results.append(trace.apply(inner, step_inputs, step_mask))
        traces.append(trace)
    for path in traces[0].layers if traces else ():
        context.layers[path] = _stack([trace.layers[path] for trace in traces])
        context.masks[path] = _stack([trace.masks[path] for trace in traces])
    output = _stack([value for value, _ in results])
    return output, _outer_mask(_stack([m for _, m in results]), mask, layer, context)


def _outer_mask(inner: Structure, mask: Structure, layer: LayerSpec, context: Context) -> Structure:
    """Keras 3.15 passes the incoming mask on (``Layer.compute_mask``).

    Keras 2.2.4 and 2.15 stack what the inner layer makes of it; if that is nothing, the incoming
    mask goes on, reduced to (B, T) by any.
    """
    if context.generation.name == "keras3" or _mask_passes_by(layer, context):
        return mask
    if _is_fixed(layer) and fixed_batch_keeps_mask(context.generation):
        return mask
    if isinstance(mask, tuple):  # several inputs, none of which has a mask
        return inner
    if mask is None or any(m is not None for m in leaves(inner)):
        return inner
    return np.asarray(mask).astype(bool).reshape(*mask.shape[:2], -1).any(axis=-1)


def _mask_passes_by(layer: LayerSpec, context: Context) -> bool:
    """Keras before 2.2.0; from then to 2.3.1, where the model fixes its batch size."""
    fixed_in_keras2 = _is_fixed(layer) and context.generation.name == "keras2"
    return fixed_in_keras2 or not mask_enters_time_distributed(context.generation)


def _is_fixed(layer: LayerSpec) -> bool:
    shape = layer.input_shape
    return isinstance(shape, tuple) and len(shape) > 0 and isinstance(shape[0], int)


def _at(structure: Structure, t: int) -> Structure:
    """Time step t of every array (B, T, ...)."""
    return map_structure(lambda leaf: None if leaf is None else leaf[:, t], structure)


def _stack(steps: Sequence[Structure]) -> Structure:
    """Arrays (B, ...) of each step as (B, T, ...); None stays None."""
    first = steps[0]
    if isinstance(first, dict):
        return {key: _stack([step[key] for step in steps]) for key in first}
    if isinstance(first, tuple):
        return tuple(_stack(parts) for parts in zip(*steps, strict=True))
    return None if first is None else np.stack(steps, axis=1)
