"""Infer the dtypes of every operation of a graph, once, when the file is read.

``semantics["kinds"]`` of an operation: dtypes of its arguments, leaf by leaf ("has"), those to
which they are cast ("wants"), and those of its outputs ("gives"). See
``schema.operations.dtypes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from keras2torch_birnn.readers.config.classes import HOW_TO_REPLACE
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.schema import OPS
from keras2torch_birnn.schema.dtype_flow import (
    Known,
    Node,
    dtype_of,
    output_dtypes,
)
from keras2torch_birnn.schema.operations.dtypes import DtypeError, Dtypes, Promotion, promote
from keras2torch_birnn.spec import (
    Call,
    Constant,
    Generation,
    Graph,
    LayerSpec,
    Structure,
    TensorRef,
    leaves,
    tensors,
)

_UNKNOWN = "unknown"


def infer_dtypes(graph: Graph, parsing: Parsing) -> Graph:
    """Infer the dtypes of every operation of a graph; those of inner models are known already."""
    if not any(layer.class_name in OPS for layer in graph.layers):
        return graph
    layers = {layer.name: layer for layer in graph.layers}
    refused = {problem.place for problem in parsing.problems}
    known: dict[Node, Dtypes] = {}
    parts: dict[TensorRef, tuple[Any, ...]] = {}
    calls: list[Call] = []
    for call in graph.calls:
        layer = layers[call.layer]
        if layer.class_name in OPS:
            layer, call = _with_parts(layer, call, parts)
            layer = _infer(layer, call, known, parsing)
            layers[call.layer] = layer
            _remember_parts(layer, call, parts)
        bad = layer.place in refused
        known[call.layer, call.index] = (_UNKNOWN,) if bad else output_dtypes(layer, call, known)
        calls.append(call)
    kept = _drop_unused(calls, layers, graph.outputs)
    return replace(graph, layers=tuple(layers.values()), calls=kept)


def _infer(layer: LayerSpec, call: Call, known: Known, parsing: Parsing) -> LayerSpec:
    has = tuple(dtype_of(leaf, known) for leaf in leaves(call.args))
    row = OPS[layer.class_name]
    if _UNKNOWN in has:  # one of the problems found before
        return _with_kinds(layer, has, Promotion(has, (_UNKNOWN,)), passes_mask=False)
    try:
        _check_indices(layer, call, parsing.generation)
        _check_cast(layer, half=parsing.half)
        settled = row.settle_dtypes(has, layer.config)
        if layer.class_name == "ops.Mean" and parsing.generation.name != "keras3":
            _check_mean(has)
    except DtypeError as error:
        name = layer.class_name.removeprefix("ops.")
        parsing.refuse(f"operation {name}: {error}", HOW_TO_REPLACE, layer.place)
        settled = Promotion(has, (_UNKNOWN,))
    passes_mask = _passes_mask(layer, has, settled, half=parsing.half)
    return _with_kinds(layer, has, settled, passes_mask=passes_mask)


def _with_kinds(
    layer: LayerSpec, has: Dtypes, settled: Promotion, *, passes_mask: bool | None
) -> LayerSpec:
    kinds = {
        "has": has,
        "wants": settled.casts,
        "gives": settled.outputs,
        "passes_mask": passes_mask,
    }
    return replace(layer, semantics={**layer.semantics, "kinds": kinds})


def _check_mean(has: Dtypes) -> None:
    """Refuse the mean of whole numbers, which is a whole number in TensorFlow."""
    if promote(has) != "float":
        raise DtypeError("the mean of whole numbers, of which TensorFlow drops the remainder")


def _check_cast(layer: LayerSpec, *, half: bool) -> None:
    """Refuse a cast to fewer bits, which would round; a file of half precision is noted as such."""
    named = layer.config.get("named")
    if layer.class_name == "ops.Cast" and named in ("float16", "bfloat16") and not half:
        raise DtypeError(f"numbers of {named}, which are computed in float32 here")


def _check_indices(layer: LayerSpec, call: Call, generation: Generation) -> None:
    """Refuse negative indices where this Keras does not count them from the end.

    TensorFlow has none; ``keras.ops.take`` of Keras 3.0 takes the first place for them
    (``tfnp.take``), from 3.5 on at the latest they count from the end.
    """
    from_the_end = generation.name == "keras3" and generation.numbers >= (3, 5)
    if layer.class_name != "ops.Take" or from_the_end:
        return
    indices = call.args[1]
    values = indices.values if isinstance(indices, Constant) else (indices,)
    if any(isinstance(value, int) and value < 0 for value in values):
        raise DtypeError("indices below 0, which this Keras does not count from the end")


def _passes_mask(layer: LayerSpec, has: Dtypes, settled: Promotion, *, half: bool) -> bool | None:
    """Tell whether Keras passes on the same tensor, with its mask: a cast to its own dtype.

    None where that depends on a float's exact dtype, which is not followed here.
    """
    if layer.class_name != "ops.Cast" or has != settled.outputs:
        return False
    if has != ("float",):
        return True
    return None if half else bool(layer.config["named"] == "float32")


# ---- shapes that are put together ---------------------------------------------------------------


def _remember_parts(layer: LayerSpec, call: Call, parts: dict[TensorRef, tuple[Any, ...]]) -> None:
    """Record the sizes that a stacked or concatenated shape consists of."""
    if layer.semantics["kinds"]["gives"] != ("size",) or layer.config.get("axis", 0) != 0:
        return
    ref = TensorRef(call.layer, call.index)
    given = tuple(leaves(call.args))
    if layer.class_name == "ops.Stack":
        parts[ref] = given
    elif layer.class_name == "ops.Concatenate":
        found = [g.values if isinstance(g, Constant) else parts.get(g) for g in given]
        if None not in found:
            parts[ref] = tuple(part for some in found for part in some or ())


def _with_parts(
    layer: LayerSpec, call: Call, parts: Mapping[TensorRef, tuple[Any, ...]]
) -> tuple[LayerSpec, Call]:
    """Replace a shape that is one tensor by its sizes, where they are known."""
    if layer.config.get("shape", ()) is not None or not call.args:
        return layer, call
    found = parts.get(call.args[-1])
    if found is None:
        return layer, call
    shape = tuple(part if type(part) is int else None for part in found)
    sizes = tuple(part for part in found if type(part) is not int)
    return (
        replace(layer, config={**layer.config, "shape": shape}),
        replace(call, args=(*call.args[:-1], *sizes)),
    )


def _drop_unused(
    calls: list[Call], layers: Mapping[str, LayerSpec], outputs: Structure
) -> tuple[Call, ...]:
    """Drop calls that only compute a shape which is no longer used."""
    read = {(ref.layer, ref.call) for ref in tensors(outputs)}
    kept: list[Call] = []
    for call in reversed(calls):
        kinds = layers[call.layer].semantics.get("kinds")
        if kinds and kinds["gives"] == ("size",) and (call.layer, call.index) not in read:
            continue
        read |= {(ref.layer, ref.call) for ref in tensors((call.args, call.kwargs))}
        kept.append(call)
    return tuple(reversed(kept))
