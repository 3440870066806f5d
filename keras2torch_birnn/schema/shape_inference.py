"""Shapes through a parsed model, before a byte of a weight is read or allocated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

from keras2torch_birnn.errors import (
    K2TError,
    UnsupportedOptionError,
    WeightMismatchError,
    invalid,
    printable,
)
from keras2torch_birnn.limits import (
    MAX_BATCH_VALUES,
    MAX_FREE_VALUES,
    MAX_LAYER_VALUES,
    MAX_VALUES_PER_WEIGHT,
)
from keras2torch_birnn.schema import SCHEMA, ShapeError, merged_output
from keras2torch_birnn.schema.custom_cells import cell_output, is_custom_cell, rnn_output
from keras2torch_birnn.schema.custom_layers import own_output
from keras2torch_birnn.schema.operations import OPS, check_sizes
from keras2torch_birnn.schema.operations.movement import check_indices
from keras2torch_birnn.schema.recurrent import CELL_GATES
from keras2torch_birnn.spec import (
    Constant,
    Graph,
    LayerSpec,
    ModelSpec,
    Shape,
    Structure,
    TensorRef,
    leaves,
    map_structure,
    tensors,
)


def as_called(layer: LayerSpec, keywords: Mapping[str, Any]) -> LayerSpec:
    """Return the layer with the options of a call beside its own, for rules that depend on both."""
    known = SCHEMA[layer.class_name].call_options if layer.class_name in SCHEMA else {}
    said = {key: value for key, value in keywords.items() if key in known}
    return replace(layer, config={**layer.config, **said}) if said else layer


def infer_model(root: LayerSpec, problems: list[K2TError]) -> LayerSpec:
    """Fill in ``input_shape`` and ``output_shape`` everywhere; what does not fit is a problem."""
    return _infer(root, None, problems)


def _infer(
    layer: LayerSpec,
    shape: Structure,
    problems: list[K2TError],
    call_options: Mapping[str, Structure] | None = None,
) -> LayerSpec:
    """Infer the shapes of a layer and of all inside it; ``call_options``: of its call."""
    if layer.graph is not None:
        graph, output = _infer_graph(layer.graph, shape, problems)
        return replace(layer, graph=graph, input_shape=shape, output_shape=output)
    try:
        return _infer_leaf(layer, shape, problems, call_options or {})
    except ShapeError as error:
        problems.append(_misfit(layer, error))
        return replace(layer, input_shape=shape)


def _misfit(layer: LayerSpec, error: ShapeError) -> WeightMismatchError:
    return WeightMismatchError(f"{layer.class_name}: {error}", place=layer.place)


def _infer_leaf(
    layer: LayerSpec,
    shape: Structure,
    problems: list[K2TError],
    call_options: Mapping[str, Structure],
) -> LayerSpec:
    """Infer the output shape of a layer that is no model, and the shapes of the layers in it."""
    if layer.class_name not in SCHEMA:  # a plugin's layer: its output may be known from before
        own = cell_output if is_custom_cell(layer) else own_output
        output = own(layer, shape)
        output = layer.output_shape if output is None else output
        return replace(layer, input_shape=shape, output_shape=output)
    if layer.class_name == "Bidirectional":
        halves = {key: _infer(part, shape, problems) for key, part in layer.parts.items()}
        heads = [half.output_shape for half in halves.values()]
        output = None
        if None not in heads:
            output = merged_output(layer.config["merge_mode"], heads[0], heads[1])
        return replace(layer, parts=halves, input_shape=shape, output_shape=output)
    if layer.class_name == "RNN":
        cell = _infer_cell(layer.parts["cell"], _map_shapes(_one_step, shape), problems)
        layer = replace(layer, parts={"cell": cell}, input_shape=shape)
        return replace(layer, output_shape=rnn_output(layer, shape))
    if layer.class_name == "TimeDistributed":
        step = _map_shapes(_one_step, shape)
        inner = _infer(layer.parts["layer"], step, problems)
        output, first = inner.output_shape, next(shape_leaves(shape))
        if _is_shape(output):
            output = (output[0], first[1] if first else None, *output[1:])
        return replace(layer, parts={"layer": inner}, input_shape=shape, output_shape=output)
    schema = SCHEMA[layer.class_name]
    schema.weights(layer.settings, shape)
    output = schema.output({**layer.settings, **call_options}, shape)
    return replace(layer, input_shape=shape, output_shape=output)


def _infer_cell(cell: LayerSpec, step: Shape | None, problems: list[K2TError]) -> LayerSpec:
    """Infer the shapes of a cell; in a stack each cell reads the output of the one before it."""
    if not cell.parts:
        return _infer(cell, step, problems)
    parts: dict[str, LayerSpec] = {}
    given: Structure = step
    for key, part in cell.parts.items():
        parts[key] = _infer(part, given, problems)
        given = parts[key].output_shape
    return replace(cell, parts=parts, input_shape=step, output_shape=given)


def _one_step(shape: Shape | None) -> Shape | None:
    """Return the shape without its second axis, time."""
    if shape is None:
        return None
    if len(shape) < 3:
        raise ShapeError(f"at least 3 dimensions are expected, found {list(shape)}")
    return (shape[0], *shape[2:])


def _map_shapes(function: Callable[[Shape | None], Structure], shape: Structure) -> Structure:
    """Apply ``function`` to a shape, or to each of a tuple or dict of shapes."""
    if shape is None or _is_shape(shape):
        return function(shape)
    if isinstance(shape, Mapping):
        return {key: _map_shapes(function, part) for key, part in shape.items()}
    return tuple(_map_shapes(function, part) for part in shape)


def declare_inputs(graph: Graph, shapes: Sequence[Shape | None]) -> Graph:
    """Return the graph with other shapes of its inputs; None keeps one."""
    layers = {layer.name: layer for layer in graph.layers}
    for ref, shape in zip(tensors(graph.inputs), shapes, strict=False):
        if shape is not None:
            own = layers[ref.layer]
            layers[ref.layer] = replace(own, config={**own.config, "shape": shape})
    return replace(graph, layers=tuple(layers.values()))


def _infer_graph(
    graph: Graph, inputs: Structure, problems: list[K2TError]
) -> tuple[Graph, Structure]:
    """Infer the shapes of a graph's layers in the order of their calls; return its outputs' too.

    inputs: the shapes of the graph's inputs. Misfits are added to ``problems``.

    Raises:
        InvalidModelFileError: an output is used that its layer does not have.
    """
    graph = declare_inputs(graph, tuple(shape_leaves(inputs)))
    layers = {layer.name: layer for layer in graph.layers}
    shapes: dict[tuple[str, int], Structure] = {}

    def shape_of(ref: object) -> Structure:
        if isinstance(ref, Constant):
            return ref.shape
        if isinstance(ref, bool | int | float):
            return ()
        if not isinstance(ref, TensorRef):
            return None
        found = shapes.get((ref.layer, ref.call))
        if found is None:
            return None
        outputs = tuple(shape_leaves(found))  # a model's dict: by its keys, as Keras flattens it
        if not 0 <= ref.output < len(outputs):
            raise invalid(
                f"output {ref.output} of layer {printable(ref.layer)} is used but not there"
            )
        return outputs[ref.output]

    for call in graph.calls:
        layer = layers[call.layer]
        if layer.class_name == "InputLayer":
            shape = layer.config["shape"]
            layers[call.layer] = replace(layer, input_shape=shape, output_shape=shape)
        else:
            inputs = call.args[0] if len(call.args) == 1 else call.args
            shape = map_structure(shape_of, inputs)
            map_structure(shape_of, call.kwargs)  # masks and states are there, too
            try:
                check_sizes(layer.class_name, layer.config, len(tuple(leaves(call.args))))
                layers[call.layer] = _infer(layer, shape, problems, call.kwargs)
                if layers[call.layer].output_shape is not None:
                    check_indices(layer.class_name, layer.config, call.args, shape)
            except ShapeError as error:
                problems.append(_misfit(layer, error))
                continue
            if call.index:
                _check_shared(layer, layers[call.layer], problems)
        shapes[call.layer, call.index] = layers[call.layer].output_shape
    output = map_structure(shape_of, graph.outputs)
    return replace(graph, layers=tuple(layers.values())), output


def _check_shared(before: LayerSpec, now: LayerSpec, problems: list[K2TError]) -> None:
    """Refuse a layer whose calls need different weights."""
    for old, new in zip(before.walk(), now.walk(), strict=True):
        if old.input_shape is None or new.input_shape is None:
            continue
        sizes, wanted = (
            [size for shape in expected_weights(one).values() for size in shape]
            for one in (old, new)
        )
        if any(a != b for a, b in zip(sizes, wanted, strict=False) if None not in (a, b)):
            problems.append(
                WeightMismatchError(
                    f"{new.class_name} is called with inputs of shape {old.input_shape} and of "
                    f"shape {new.input_shape}, which need different weights",
                    place=new.place,
                )
            )


def _is_shape(value: Structure) -> TypeGuard[Shape]:
    return isinstance(value, tuple) and all(v is None or isinstance(v, int) for v in value)


def shape_leaves(structure: Structure) -> Iterator[Shape | None]:
    """Yield the shapes in a structure of shapes, left to right."""
    if isinstance(structure, Mapping):
        structure = tuple(structure.values())
    if isinstance(structure, tuple) and not _is_shape(structure):
        for part in structure:
            yield from shape_leaves(part)
    else:
        yield structure


def check_layer_sizes(root: LayerSpec) -> None:
    """Refuse sizes that no weight backs up (a padding of a million million steps).

    Raises:
        InvalidModelFileError: a layer's output has more than ``MAX_LAYER_VALUES`` numbers.
    """
    for layer in root.walk():
        for shape in (*shape_leaves(layer.input_shape), *shape_leaves(layer.output_shape)):
            count = math.prod(size for size in shape or () if size is not None)
            if count > MAX_LAYER_VALUES:
                raise invalid(
                    f"an output of {count} numbers, more than {MAX_LAYER_VALUES}", layer.place
                )


def expected_weights(layer: LayerSpec) -> Mapping[str, tuple[int | None, ...]]:
    """Return name -> shape of the weights that this layer itself owns, by its config and input."""
    if layer.class_name not in SCHEMA or layer.graph is not None:
        return {}
    try:
        shape: Structure = layer.input_shape
        return SCHEMA[layer.class_name].weights(layer.settings, shape)
    except ShapeError:
        return {}


# ---- the memory of a batch -----------------------------------------------------------------------

# Modes in which the ids of a sample are one row.
_JOINED = ("multi_hot", "count")
# As many bools take the memory of a number.
_BOOLS = 8


def check_batch_memory(model: ModelSpec, inputs: Sequence[tuple[int, ...]]) -> None:
    """Refuse a model that makes too many values of inputs of these shapes.

    Raises:
        UnsupportedOptionError: it does; the place is the first layer that does alone, or the model.
    """
    root = _with_inputs(model, inputs)
    values = _values(root) * max((shape[0] for shape in inputs if shape), default=1)
    if values > (most := _most_values(model)):
        raise UnsupportedOptionError(
            f"a small batch makes {values} values in this model, more than the {most} that its "
            "weights allow",
            "such a model cannot be proved equal here",
            place=printable(max((_own(layer), layer.place) for layer in root.walk())[1]),
        )


def limit_rows(model: ModelSpec, row: Sequence[tuple[int, ...]], rows: int) -> int:
    """Return ``rows``, or as many as do not make too many values, one at least.

    row: the shapes of inputs of one row.
    """
    return max(1, min(rows, _most_values(model) // max(1, _values(_with_inputs(model, row)))))


def _most_values(model: ModelSpec) -> int:
    """Return how many values a batch may make: in proportion to the weights, so to the file."""
    weights = sum(
        math.prod(array.shape) for layer in model.root.walk() for array in layer.weights.values()
    )
    return min(MAX_BATCH_VALUES, MAX_FREE_VALUES + MAX_VALUES_PER_WEIGHT * weights)


def _with_inputs(model: ModelSpec, inputs: Sequence[tuple[int, ...]]) -> LayerSpec:
    graph = declare_inputs(model.graph, [(None, *shape[1:]) for shape in inputs])
    problems: list[K2TError] = []  # shapes other than the file's may not fit; the run reports that
    return infer_model(replace(model.root, graph=graph), problems)


def _values(layer: LayerSpec) -> int:
    """Count the values that one call of the layer makes of one row, inner layers included."""
    total = _own(layer) + sum(map(_values, layer.parts.values()))
    if layer.graph is None:
        return total
    each = {inner.name: _values(inner) for inner in layer.graph.layers}
    return total + sum(each[call.layer] for call in layer.graph.calls)


def _own(layer: LayerSpec) -> int:
    total = _sizes(layer.output_shape)
    shapes: Structure = layer.input_shape
    if "Attention" in layer.class_name and isinstance(shapes, tuple):
        steps = [s[1:-1] for s in shapes if isinstance(s, tuple) and len(s) > 1]
        lengths = [size or 1 for part in steps[:2] for size in part]
        total += math.prod(lengths) * int(layer.config.get("num_heads", 1))  # the scores, at most
    return total + _inner_values(layer)


def _inner_values(layer: LayerSpec) -> int:
    """Count what is computed inside of a layer and not returned: gates, and margins of windows."""
    config = layer.config
    shape: Structure = layer.input_shape
    output: Structure = layer.output_shape
    if config.get("output_mode") in _JOINED and isinstance(output, tuple):
        ids, *weights = shape_leaves(shape)
        hits = _sizes(ids) * int(output[-1] or 1)  # each id against every token
        return hits if weights else hits // _BOOLS
    if not isinstance(shape, tuple) or len(shape) < 3 or isinstance(shape[-1], tuple | Mapping):
        return 0
    if layer.class_name in CELL_GATES:
        return CELL_GATES[layer.class_name] * int(config["units"]) * (shape[1] or 1)
    sizes = config.get("kernel_size") or config.get("pool_size")
    if sizes is None or layer.class_name in OPS:  # these have a limit of their own
        return 0
    last = config["data_format"] == "channels_last"
    dilations = config.get("dilation_rate") or (1,) * len(sizes)
    strides = config.get("strides") or sizes
    # Each axis with a margin on both sides; a transposed one first grows by its stride.
    lengths = [
        (steps or 1) * (stride if layer.class_name.endswith("Transpose") else 1)
        + 2 * ((size - 1) * dilation + 1)
        for steps, size, dilation, stride in zip(
            shape[1:-1] if last else shape[2:], sizes, dilations, strides, strict=False
        )
    ]
    channels = int((shape[-1] if last else shape[1]) or 1)
    return int(math.prod(lengths)) * max(channels, int(config.get("filters") or 1))


def _sizes(shape: Structure) -> int:
    """Count the values of a structure of shapes; unknown sizes count as one."""
    if isinstance(shape, Mapping):
        return sum(map(_sizes, shape.values()))
    if not isinstance(shape, tuple):
        return 0
    if any(isinstance(part, tuple | Mapping) for part in shape):
        return sum(map(_sizes, shape))
    return math.prod(size or 1 for size in shape)
