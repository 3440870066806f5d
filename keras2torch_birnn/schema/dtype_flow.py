"""Dtypes of the tensors in a graph. See ``operations.dtypes``.

A layer of Keras computes in floats, and casts floats of another precision by itself. Integers and
bools it takes unchanged, casts (Dense of tf.keras), promotes (most of Keras 3), or refuses: then no
file holds such a model.
Sources: ``Layer._maybe_cast_inputs`` (2.15), ``DTypePolicy.convert_input`` (3.15), and trials of
every layer in Keras 2.2.4 to 3.15.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from keras2torch_birnn.schema import DROPOUT, RESHAPED, WITH_GRAPH
from keras2torch_birnn.schema.operations.dtypes import Dtypes
from keras2torch_birnn.schema.row import names_for_ranks
from keras2torch_birnn.spec import (
    Call,
    Constant,
    Generation,
    Graph,
    LayerSpec,
    TensorRef,
    leaves,
    tensors,
)

Node = tuple[str, int]
# The output dtypes of the calls of a graph that are known.
Known = Mapping[Node, Dtypes]

# Layers whose output has the dtype of the input; that of all others is float.
KEEPS = frozenset(DROPOUT + RESHAPED) | frozenset(
    names_for_ranks(
        "ZeroPadding{}D Cropping{}D UpSampling{}D GlobalMaxPooling{}D Concatenate Add Subtract "
        "Multiply Maximum Minimum Masking"
    )
)
# Layers that look numbers up or compare them exactly, so without a float in between.
TAKES_IDS = frozenset({"Embedding", "CategoryEncoding", *WITH_GRAPH})
# These cast by themselves.
_CASTS = frozenset({"Normalization", "Rescaling"})
LITERALS: Mapping[type, str] = {bool: "a bool", int: "an int", float: "a float"}

_INTEGERS = frozenset({"int32", "int64"})
_SHORT = frozenset({"int8", "uint8", "int16", "uint16"})
_ARITHMETIC = frozenset("Add Subtract Multiply Negative Square Power Sum Prod Cumsum".split())
_NORMALIZES = frozenset({"LayerNormalization", "GroupNormalization", "RMSNormalization"})


def declared_dtype(layer: LayerSpec) -> str:
    """Return the dtype to which Keras casts this input."""
    dtype = str(layer.config["dtype"])
    if dtype in ("bool", "int64"):
        return dtype
    return "int32" if dtype.startswith(("int", "uint")) else "float"


def dtype_of(leaf: Any, known: Known) -> str:
    """Return the dtype of an argument: of a tensor, a constant or a literal."""
    if isinstance(leaf, TensorRef):
        found = known.get((leaf.layer, leaf.call), ("float",))
        return found[min(leaf.output, len(found) - 1)]
    if isinstance(leaf, Constant):
        if leaf.kind is not None:
            return leaf.kind
        types = {type(value) for value in leaf.values}
        return LITERALS[float if float in types else int if int in types or not types else bool]
    return LITERALS.get(type(leaf), "a float")


def output_dtypes(layer: LayerSpec, call: Call, known: Known) -> Dtypes:
    """Return the output dtypes of a call of a layer, or of an operation whose dtypes are known."""
    layer = without_time_distributed(layer)
    if "kinds" in layer.semantics:
        settled: Dtypes = layer.semantics["kinds"]["gives"]
        return settled
    if layer.class_name == "InputLayer":
        return (declared_dtype(layer),)
    if layer.graph is not None:
        inside = known_dtypes(layer.graph)
        return tuple(dtype_of(ref, inside) for ref in leaves(layer.graph.outputs))
    if keeps_dtype(layer):
        kinds = tuple(dtype_of(leaf, known) for leaf in leaves(call.args))
        return kinds[:1] if one_dtype(kinds) else ("float",)
    return ("float",)


def keeps_dtype(layer: LayerSpec) -> bool:
    """Tell whether a layer's output has the dtype of its input, if all inputs have the same."""
    keeps = layer.class_name in KEEPS or layer.semantics.get("keeps_integers", False)
    return bool(keeps) and layer.config.get("interpolation") in (None, "nearest")


def takes_unchanged(layer: LayerSpec, kinds: Dtypes) -> bool:
    """Tell whether a layer of Keras takes these dtypes unchanged; if not, it casts to float."""
    layer = without_time_distributed(layer)
    takes_any = layer.graph is not None or layer.class_name in TAKES_IDS | _CASTS
    return takes_any or (keeps_dtype(layer) and one_dtype(kinds))


def one_dtype(kinds: Dtypes) -> bool:
    """Tell whether tensors are combined without a cast; integers of any width are."""
    return len({"whole" if kind in _INTEGERS else kind for kind in kinds}) <= 1


def known_dtypes(graph: Graph) -> Known:
    """Return the output dtypes of every call of a graph."""
    known: dict[Node, Dtypes] = {}
    for call in graph.calls:
        known[call.layer, call.index] = output_dtypes(graph.layer(call.layer), call, known)
    return known


def without_time_distributed(layer: LayerSpec) -> LayerSpec:
    """Return the layer that a TimeDistributed applies at every step; any other layer itself.

    A TimeDistributed that was refused has no layer inside.
    """
    while layer.class_name == "TimeDistributed" and layer.parts:
        layer = layer.parts["layer"]
    return layer


def refusals(graph: Graph, generation: Generation) -> Iterator[tuple[str, str]]:
    """Yield (place, reason) of layers that compute with integers or bools unlike with floats."""
    known = known_dtypes(graph)
    short: set[Node] = set()
    for call in graph.calls:
        layer = without_time_distributed(graph.layer(call.layer))
        refs = list(tensors(call.args))
        kinds = {dtype_of(ref, known) for ref in refs}
        bare = layer.class_name.removeprefix("ops.")
        is_short = bool(refs) and all((ref.layer, ref.call) in short for ref in refs)
        if str(layer.config.get("dtype")) in _SHORT or (is_short and keeps_dtype(layer)):
            short.add((call.layer, call.index))
        if is_short and bare in _ARITHMETIC:
            yield layer.place, "numbers of 8 or 16 bits: sums and products overflow there"
        elif layer.class_name == bare and (reason := _refusal(layer, kinds, generation)):
            yield layer.place, reason


def _refusal(layer: LayerSpec, kinds: set[str], generation: Generation) -> str:
    keras3, whole = generation.name == "keras3", bool(kinds) and kinds <= _INTEGERS
    if whole and layer.class_name.startswith("GlobalAveragePooling") and not keras3:
        return "the mean of whole numbers: this Keras drops the remainder"
    smooth = layer.config.get("interpolation") not in (None, "nearest")
    cuts = layer.class_name in _NORMALIZES or smooth
    if keras3 and cuts and kinds and "float" not in kinds:
        return "whole numbers or bools: Keras 3 cuts the result to such again"
    if (layer.class_name == "Dot" and kinds == {"bool"}) or (
        layer.class_name == "Multiply" and "bool" in kinds and not keras3
    ):
        return "bools: this Keras gives bools again"
    return ""
