"""Check the spec of an OUT as strictly as the configuration of a Keras file.

The schema parses every option, ``readers.config.checks`` checks every call, and the shapes
are inferred anew, so that nothing depends on what the file says of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from keras2torch_birnn.errors import InvalidModelFileError, K2TError, WeightMismatchError, printable
from keras2torch_birnn.readers.config.checks import check_call_count, check_graph, is_argument_name
from keras2torch_birnn.schema import (
    CELLS,
    OPS,
    RECURRENT,
    SCHEMA,
    WITH_GRAPH,
    BadOptionError,
    Option,
)
from keras2torch_birnn.schema.cells import STACK
from keras2torch_birnn.schema.custom_cells import is_custom_cell
from keras2torch_birnn.schema.dtype_flow import Node, dtype_of, output_dtypes
from keras2torch_birnn.schema.operations.dtypes import DtypeError, Dtypes
from keras2torch_birnn.schema.penalties import CONSTRAINT, REGULARIZER, rows_of
from keras2torch_birnn.schema.shape_inference import (
    check_layer_sizes,
    expected_weights,
    infer_model,
)
from keras2torch_birnn.spec import (
    Graph,
    LayerSpec,
    ModelSpec,
    Structure,
    TensorRef,
    leaves,
    shape_fits,
    tensors,
)

# Classes that occur in a graph alone; those of cells occur in an RNN or a stack alone.
_IN_GRAPHS = frozenset({"InputLayer", *OPS})
_HALVES = ("forward_layer", "backward_layer")
_SAME_IN_HALVES = ("return_sequences", "return_state", "stateful")


def check_spec(spec: ModelSpec, state: Mapping[str, Tensor]) -> ModelSpec:
    """Refuse a spec that no Keras model has; return it with parsed options and inferred shapes.

    Every option of every layer must pass the schema, every call must be one that its layer takes,
    and the declared weights must be those of the options, and not larger than the stored tensors.

    Raises:
        InvalidModelFileError: the spec is damaged. WeightMismatchError: it declares more weights.
    """
    if spec.root.graph is None:
        raise _damaged("not a model", "spec")
    if spec.root.class_name in CELLS or spec.root.class_name in _IN_GRAPHS:
        raise _damaged(f"a model of class {printable(spec.root.class_name)}", "spec")
    root = _check_layer(spec.root)
    check_call_count(root)
    root = _infer(root)
    stored = sum(tensor.numel() for tensor in state.values())
    declared = sum(map(_count_declared, root.walk()))
    if declared > 2 * stored + 1024:
        raise WeightMismatchError(
            f"its tensors do not fit its spec: {declared} values declared, {stored} stored"
        )
    for layer in root.walk():
        _check_weights(layer)
        if layer.graph is not None:
            _check_kinds(layer.graph)
    return replace(spec, root=root)


def _infer(root: LayerSpec) -> LayerSpec:
    problems: list[K2TError] = []
    try:
        root = infer_model(root, problems)
        check_layer_sizes(root)
    except InvalidModelFileError as error:
        problems.append(error)
    for problem in problems:
        raise _damaged(problem.message, problem.place)
    return root


def _damaged(what: str, place: str) -> InvalidModelFileError:
    return InvalidModelFileError(f"its spec is damaged ({what})", "convert again", place=place)


# ---- layers -------------------------------------------------------------------------------------


def _check_layer(layer: LayerSpec) -> LayerSpec:
    """Check a layer and all inside it; parse its options and forget its shapes.

    A plugin's layer keeps the output shape, which may have been seen when it ran.
    """
    ours = layer.class_name in SCHEMA
    if (layer.class_name in WITH_GRAPH) != (layer.graph is not None):
        raise _damaged(f"{printable(layer.class_name)} with or without layers", layer.place)
    _check_training(layer)
    if layer.parts and not ours:
        raise _damaged(f"{printable(layer.class_name)} with layers in it", layer.place)
    if ours:
        _check_parts(layer)
        layer = _parse_options(layer)
        layer = replace(layer, output_shape=None)
    layer = replace(
        layer,
        input_shape=None,
        parts={key: _check_layer(part) for key, part in layer.parts.items()},
    )
    if layer.graph is None:
        return layer
    return replace(layer, graph=_check_graph(layer.graph, layer.place))


def _parse_options(layer: LayerSpec) -> LayerSpec:
    row, config, semantics = SCHEMA[layer.class_name], dict(layer.config), dict(layer.semantics)
    if layer.graph is not None:
        return layer
    for settings, options in ((config, row.options), (semantics, row.semantics)):
        for key, option in options.items():
            if key not in settings:
                raise _damaged(f"no option {key}", layer.place)
            settings[key] = _parse_option(key, option, settings[key], layer.place)
    for key in config.keys() - row.options.keys() - {"trainable"}:
        raise _damaged(f"option {printable(key)}", layer.place)
    if not isinstance(config.get("trainable", True), bool):
        raise _damaged("option trainable", layer.place)
    return replace(layer, config=config, semantics=semantics)


def _parse_option(key: str, option: Option, value: Any, place: str) -> Any:
    """Return the parsed value, which must be the file's own: what is saved was parsed before."""
    try:
        parsed = option.parse(value)
        same = bool(parsed == value)
    except BadOptionError:
        same = False
    if not same:
        raise _damaged(f"option {printable(key)}={printable(repr(value))}", place)
    return parsed


def _check_training(layer: LayerSpec) -> None:
    for key, value in layer.training.items():
        name = value.get("name")
        if not key.endswith((REGULARIZER, CONSTRAINT)) or not isinstance(name, str):
            raise _damaged(f"option {printable(key)}", layer.place)
        row = rows_of(key).get(name, {})
        if value.keys() != {"name", *row}:
            raise _damaged(f"option {printable(key)}={printable(repr(dict(value)))}", layer.place)
        for option, kind in row.items():
            _parse_option(f"{key}.{option}", kind, value[option], layer.place)


def _check_parts(layer: LayerSpec) -> None:
    """Refuse inner layers that one of Keras' layers cannot have."""
    parts = layer.parts
    if layer.class_name == STACK:
        wanted: Sequence[str] = [str(number) for number in range(max(1, len(parts)))]
    else:
        wanted = SCHEMA[layer.class_name].parts
    if tuple(parts) != tuple(wanted):
        raise _damaged(f"a {layer.class_name} of {printable(', '.join(parts))}", layer.place)
    for part in parts.values():
        if not _may_be_part(layer.class_name, part.class_name):
            raise _damaged(f"{printable(part.class_name)} in a {layer.class_name}", part.place)
    if layer.class_name == "Bidirectional":
        forward, backward = (parts[key].config for key in _HALVES)
        same = all(forward.get(key) == backward.get(key) for key in _SAME_IN_HALVES)
        if not same or forward.get("go_backwards") == backward.get("go_backwards"):
            raise _damaged("its halves do not fit each other", layer.place)


def _may_be_part(outer: str, inner: str) -> bool:
    """Tell whether a layer of the class ``inner``, of Keras or a plugin, may be inside another."""
    if outer == "Bidirectional":
        return inner in RECURRENT
    if outer in ("RNN", STACK):
        return inner not in SCHEMA or (inner in CELLS and (outer, inner) != (STACK, STACK))
    return inner not in CELLS and inner not in _IN_GRAPHS


# ---- graphs -------------------------------------------------------------------------------------


def _check_graph(graph: Graph, place: str) -> Graph:
    """Check that calls refer to earlier calls, and that every layer can be called so."""
    by_name = {layer.name: layer for layer in graph.layers}
    if len(by_name) != len(graph.layers):
        raise _damaged("two layers with one name", place)
    for layer in graph.layers:
        if layer.class_name in CELLS or is_custom_cell(layer):
            raise _damaged(f"{printable(layer.class_name)} outside an RNN", layer.place)
    graph = replace(graph, layers=tuple(map(_check_layer, graph.layers)))
    called: set[Node] = set()

    def check(structure: Structure) -> None:
        for ref in tensors(structure):
            if (ref.layer, ref.call) not in called:
                raise _damaged(f"{printable(ref.layer)} is used before it is called", place)

    for call in graph.calls:
        if call.layer not in by_name:
            raise _damaged(f"{printable(call.layer)} is not a layer", place)
        for key in call.kwargs:  # they become names of arguments in the model's code
            if not is_argument_name(key):
                raise _damaged(f"a call with {printable(key)}=", place)
        check((call.args, dict(call.kwargs)))
        if (call.layer, call.index) in called:
            raise _damaged(f"{printable(call.layer)} has two calls of one number", place)
        called.add((call.layer, call.index))
    check((graph.inputs, graph.outputs))
    for ends, what in ((graph.inputs, "inputs"), (graph.outputs, "outputs")):
        found = list(leaves(ends))
        if not found or not all(isinstance(end, TensorRef) for end in found):
            raise _damaged(f"its {what}", place)
    try:
        return check_graph(graph, place)
    except InvalidModelFileError as error:
        raise _damaged(error.message, error.place) from None


def _check_kinds(graph: Graph) -> None:
    """Refuse dtypes of operations that do not follow from those of their arguments."""
    known: dict[Node, Dtypes] = {}
    for call in graph.calls:
        layer = graph.layer(call.layer)
        if layer.class_name in OPS:
            has = tuple(dtype_of(leaf, known) for leaf in leaves(call.args))
            kinds = layer.semantics["kinds"]
            try:
                settled = OPS[layer.class_name].settle_dtypes(has, layer.config)
            except DtypeError as error:
                raise _damaged(str(error), layer.place) from None
            found = None if kinds is None else (kinds["has"], kinds["wants"], kinds["gives"])
            if found != (has, settled.casts, settled.outputs):
                raise _damaged(f"option kinds={printable(repr(kinds))}", layer.place)
        known[call.layer, call.index] = output_dtypes(layer, call, known)


# ---- weights ------------------------------------------------------------------------------------


def _count_declared(layer: LayerSpec) -> int:
    """Return the declared number of values of the layer's weights in torch."""
    return sum(math.prod(array.shape) for array in layer.weights.values())


def _check_weights(layer: LayerSpec) -> None:
    """Refuse weights that are not those of the layer's options."""
    if layer.class_name not in SCHEMA:
        return
    wanted = expected_weights(layer)
    for name in (*wanted, *layer.weights):
        there = layer.weights[name].shape if name in layer.weights else None
        if name not in wanted or there is None or not shape_fits(there, wanted[name]):
            raise _damaged(f"weight {printable(name)}", layer.place)
