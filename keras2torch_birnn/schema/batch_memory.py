"""Number of values that one small batch makes in a model: a small file may ask for terabytes.

Golden vectors and every verification compute the model, so this is looked at before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from keras2torch_birnn.errors import K2TError, UnsupportedOptionError, printable
from keras2torch_birnn.limits import MAX_BATCH_VALUES, MAX_FREE_VALUES, MAX_VALUES_PER_WEIGHT
from keras2torch_birnn.schema.operations import OPS
from keras2torch_birnn.schema.recurrent import CELL_GATES
from keras2torch_birnn.schema.shape_inference import declare_inputs, infer_model, shape_leaves
from keras2torch_birnn.spec import LayerSpec, ModelSpec, Structure

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
