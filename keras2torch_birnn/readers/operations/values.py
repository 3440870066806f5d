"""Values in the arguments of operations: tensors, numbers, constants; dtypes through a graph."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np

from keras2torch_birnn.errors import UnsupportedOptionError, invalid, printable
from keras2torch_birnn.limits import MAX_CONSTANT_DEPTH, MAX_INT64
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

Values = dict[str, Any]

# Classes of entries that are operations in tf.keras; the module of those in the normal form
TF_FUNCTIONS = ("TFOpLambda", "SlicingOpLambda")
GRAPH_NODE = "TensorFlowOpLayer"


def unsupported(finding: str, advice: str = HOW_TO_REPLACE) -> UnsupportedOptionError:
    """Make an error without its path, which the caller knows."""
    return UnsupportedOptionError(finding, advice)


def is_tensor(value: Any) -> bool:
    """Tell whether this is a reference to a tensor of the model."""
    return isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__"


def is_reference(value: Any, names: Container[str]) -> TypeGuard[list[Any]]:
    """Tell whether a list begins as a reference to a tensor: layer, call, output."""
    if not isinstance(value, list):
        return False
    return [type(part) for part in value[:3]] == [str, int, int] and value[0] in names


def tensor(layer: str, call: int, output: int) -> dict[str, Any]:
    """Make a reference in the form of Keras 3."""
    return {
        "class_name": "__keras_tensor__",
        "config": {"keras_history": [layer, call, output]},
    }


def numbers_in(value: Any) -> Any:
    """Unwrap the list or number of an array of Keras 3; return any other value as it is."""
    if isinstance(value, Mapping) and value.get("class_name") in ("__numpy__", "__tensor__"):
        config = value.get("config")
        return config.get("value") if isinstance(config, Mapping) else None
    if isinstance(value, Mapping) and value.get("class_name") == "__tuple__":
        return value.get("items")
    return value


def constant(value: Any) -> Any:
    """Convert an argument: a list of numbers to one constant; tensors and numbers stay."""
    if isinstance(value, str):
        raise unsupported(f"the text {printable(repr(value))} where numbers are expected")
    if isinstance(value, list | tuple):
        return {"class_name": "__tensor__", "config": {"value": value, "dtype": None}}
    return value


def constant_of_option(value: Any) -> Any:
    """Convert an option: arrays and nested tuples to lists."""
    plain = numbers_in(value)
    if isinstance(plain, list | tuple):
        return [constant_of_option(part) for part in plain]
    return plain


def convert_list(value: Any) -> list[Any]:
    """Convert a list of tensors, each of which may be a constant."""
    if not isinstance(value, list | tuple):
        raise unsupported("one tensor where a list of tensors is expected")
    return [constant(part) for part in value]


def split_sizes(value: Any) -> tuple[Any, tuple[Any, ...]]:
    """Split a shape into fixed sizes, None for each tensor, and these tensors.

    A tensor that is the whole shape gives None and itself.
    """
    value = numbers_in(value)
    if is_tensor(value):
        return None, (value,)
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list | tuple):
        raise unsupported(f"the shape {printable(repr(value))}")
    if any(part is None for part in value):
        raise unsupported("a shape with a size that is not there")
    return (
        [None if is_tensor(part) else numbers_in(part) for part in value],
        tuple(part for part in value if is_tensor(part)),
    )


_KINDS: Mapping[str, str] = {
    **dict.fromkeys("float16 bfloat16 float32 float64".split(), "float"),
    **{name: name for name in ("int32", "int64", "bool")},
}


def dtype_kind(value: Any) -> str | None:
    """Return "float", "int32", "int64" or "bool" for a dtype (also "DT_FLOAT"); None stays.

    Raises:
        UnsupportedOptionError: text, complex numbers, or whole numbers of other sizes.
    """
    if value is None:
        return None
    name = dtype_name(value)
    if name not in _KINDS:
        raise unsupported(f"dtype {printable(name)} is not supported")
    return _KINDS[name]


_OTHER_NAMES = {"float": "float32", "double": "float64", "half": "float16"}


def dtype_name(value: Any) -> str:
    """Return the plain name of a dtype."""
    name = str(value).removeprefix("tf.").removeprefix("DT_").lower()
    return _OTHER_NAMES.get(name, name)


# ---- constants -----------------------------------------------------------------------------------


# Constants in the place of tensors, as Keras 3 writes them: ``__numpy__`` and ``__tensor__``.


CONSTANT_CLASSES = ("__numpy__", "__tensor__")


def read_constant(value: Mapping[str, Any], place: str) -> Constant | float:
    """Parse a constant; a single float becomes a number.

    Floats are rounded to float32, in which Keras computes with them, unless the file says float64.

    Raises:
        InvalidModelFileError: not numbers in equal rows; UnsupportedOptionError: such a dtype.
    """
    config = value.get("config")
    config = config if isinstance(config, Mapping) else {}
    try:
        declared = dtype_kind(config.get("dtype"))
    except UnsupportedOptionError as error:
        error.place = place
        raise
    flat: list[Any] = []
    shape = _flatten(config.get("value"), flat, 0, place)
    if declared == "float" or (
        declared is None and any(isinstance(number, float) for number in flat)
    ):
        if str(config.get("dtype")).removeprefix("tf.") != "float64":
            flat = np.asarray(flat, dtype=np.float32).astype(float).tolist()
        if shape == ():
            return float(flat[0])
    return Constant(tuple(flat), shape, declared)


def _flatten(value: Any, flat: list[Any], depth: int, place: str) -> tuple[int, ...]:
    if isinstance(value, bool | int | float):
        if isinstance(value, int) and abs(value) > MAX_INT64:
            raise invalid(f"a constant with {printable(value)}", place)
        flat.append(value)
        return ()
    if not isinstance(value, list | tuple) or depth > MAX_CONSTANT_DEPTH:
        raise invalid(f"a constant of {printable(repr(value))}, numbers are expected", place)
    shapes = {_flatten(part, flat, depth + 1, place) for part in value}
    if len(shapes) > 1:
        raise invalid("a constant of unequal rows", place)
    return (len(value), *(shapes.pop() if shapes else ()))


# ---- dtypes --------------------------------------------------------------------------------------

# Those of every operation of a graph, once, when the file is read.
#
# ``semantics["kinds"]`` of an operation: dtypes of its arguments, leaf by leaf ("has"), those to
# which they are cast ("wants"), and those of its outputs ("gives"). See
# ``schema.operations.dtypes``.


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
