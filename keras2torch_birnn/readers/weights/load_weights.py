"""Locate, check and read the weights; infer what only weights tell."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from keras2torch_birnn.errors import (
    K2TError,
    WeightMismatchError,
    expecting_keras,
    gather,
    printable,
)
from keras2torch_birnn.progress import advance, begin
from keras2torch_birnn.readers.config.generations import has_mask
from keras2torch_birnn.readers.config.parsing import Parsing, Whole, common_dtype, mixture_note
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.store import StoredArray
from keras2torch_birnn.readers.weights.paths import WeightPaths, layout_of
from keras2torch_birnn.readers.weights.slots import Layout, replace_layers
from keras2torch_birnn.schema import SCHEMA, ShapeError
from keras2torch_birnn.schema.custom_layers import named_weights
from keras2torch_birnn.schema.shape_inference import infer_model
from keras2torch_birnn.spec import (
    Array,
    Generation,
    Graph,
    LayerPath,
    LayerSpec,
    Shape,
    Structure,
    leaves,
    shape_fits,
    tensors,
    with_dtype,
)

# Values that are looked at together, so that what is made of them stays small.
_BLOCK = 1 << 18


def load_weights(
    root: LayerSpec,
    container: Container,
    parsing: Parsing,
    whole: Whole | None = None,
    *,
    values: bool,
) -> tuple[LayerSpec, LocatedWeights, tuple[str, ...]]:
    """Return the model with its weights, where they were, and notes about them.

    whole: the model of which ``root`` is a part, None if it is whole. All of its weights are
    located, and those of other parts then left out.

    values: read them;
    else zeros stand for them, but in a model with layers of a plugin, which may use its weights in
    any way.

    Raises:
        WeightMismatchError: weights are missing, superfluous, or of other shapes than the
            configuration implies.
    """
    located = find_weights(root, container, parsing, whole)
    notes = list(located.notes)
    values = values or any(layer.class_name not in SCHEMA for layer in located.root.walk())
    if values:
        arrays = (array for row in located.rows for array in row.arrays.values())
        begin("reading weights", sum(array.nbytes for array in arrays))
    layers = {
        row.layer.path: _read(row, located.layout, notes, values=values) for row in located.rows
    }
    notes += repeated_note(located.stored)
    root = replace_layers(located.root, layers)
    dtype = common_dtype([array for one in layers.values() for array in one.weights.values()])
    if parsing.generation.name in ("tf.keras", "keras3"):
        notes = [*notes, *mixture_note(parsing.floats, dtype)]
    return with_dtype(root, dtype), located, tuple(notes)


@dataclass(frozen=True)
class StoredLayer:
    """A layer with weights, and the arrays in the file that hold them, by name.

    ``layer`` has the options that its weights determine.
    """

    layer: LayerSpec
    arrays: Mapping[str, StoredArray]


@dataclass(frozen=True)
class LocatedWeights:
    """The arrays of a file that are a model's weights, checked but not read.

    ``root``: the model with the options that its weights determine, but without weights.
    ``names``: those that Keras gave the arrays. ``layout``: how the arrays of a row become the
    weights of Keras 2.
    """

    root: LayerSpec
    rows: tuple[StoredLayer, ...]
    names: WeightPaths
    layout: Layout
    notes: tuple[str, ...]

    @property
    def stored(self) -> Mapping[LayerPath, Mapping[str, StoredArray]]:
        """The arrays by the path of their layer and by name."""
        return {row.layer.path: row.arrays for row in self.rows}


def find_weights(
    root: LayerSpec,
    container: Container,
    parsing: Parsing,
    whole: Whole | None = None,
) -> LocatedWeights:
    """Locate the weights of a parsed model, and check their shapes and dtypes.

    whole: as ``load_weights`` takes them.

    Raises:
        WeightMismatchError: weights are missing, superfluous, or of other shapes than the
            configuration implies.
    """
    generation, layout = parsing.generation, layout_of(parsing.generation)
    with expecting_keras("weights"):
        paths = _locate(root, container, generation, whole)
    names = container.written_names(paths)
    root, notes = resolve_masked_steps(root, names, generation, parsing.of_tensorflow_1)
    arrays = iter(container.store.arrays([path for row in paths.values() for path in row.values()]))
    stored = {path: {name: next(arrays) for name in names} for path, names in paths.items()}
    root = _infer_input_shape(root, stored)
    rows = tuple(
        StoredLayer(layout.infer(layer, stored[layer.path]), stored[layer.path])
        for layer in root.walk()
        if layer.path in stored
    )
    problems = [problem for row in rows for problem in _list_problems(row, layout)]
    if problems:
        raise gather(problems)
    root = replace_layers(root, {row.layer.path: row.layer for row in rows})
    return LocatedWeights(root, rows, names, layout, tuple(notes))


def _locate(
    root: LayerSpec, container: Container, generation: Generation, whole: Whole | None
) -> WeightPaths:
    if whole is None:
        return container.locate_weights(root, generation)
    inside = {layer.path for layer in root.walk()}
    paths = container.locate_weights(whole.model, generation, whole.left_out)
    return {path: found for path, found in paths.items() if path in inside}


def _infer_input_shape(
    root: LayerSpec, stored: Mapping[LayerPath, Mapping[str, StoredArray]]
) -> LayerSpec:
    """Infer the input's shape from the first weights, where the file lacks it, and all others."""
    known = with_input_shape(root, stored)
    if known is root:
        return root
    problems: list[K2TError] = []
    known = infer_model(known, problems)
    if problems:
        raise gather(problems)
    return known


def _list_problems(row: StoredLayer, layout: Layout) -> Iterator[K2TError]:
    """Yield what of a layer's arrays does not fit its options: shapes and dtypes."""
    layer, schema = row.layer, SCHEMA.get(row.layer.class_name)
    expected = named_weights(layer) or layout.shapes(layer, row.arrays)
    shape: Structure = layer.input_shape
    if schema is not None:
        try:
            schema.weights(layer.config, shape)
        except ShapeError as error:
            yield WeightMismatchError(str(error), place=layer.place)
    integers = schema.integer_weights if schema is not None else ()
    for name in sorted(expected.keys() - row.arrays.keys()):
        yield WeightMismatchError(f"the weight {printable(name)} is missing", place=layer.place)
    for name, array in row.arrays.items():
        wanted = expected.get(name)
        if wanted is not None and not shape_fits(array.shape, wanted):
            shown = ", ".join("any" if size is None else str(size) for size in wanted)
            yield WeightMismatchError(
                f"{name} {array.shape}, the configuration implies ({shown})",
                "the file is damaged or belongs to another model",
                place=array.path,
            )
        elif array.dtype.kind != "f" and name not in integers:
            yield WeightMismatchError(
                f"{name} holds {array.dtype.name}, float weights are expected", place=array.path
            )


def _read(row: StoredLayer, layout: Layout, notes: list[str], *, values: bool) -> LayerSpec:
    """Return the layer with its weights; add a note for each that is not finite."""
    weights: dict[str, Any] = {}
    for name, array in row.arrays.items():
        if not values:
            weights[name] = np.broadcast_to(np.zeros((), array.dtype), array.shape)
            continue
        weights[name] = array.read()
        if not _are_finite(weights[name]):
            place = printable(row.layer.place)
            notes.append(f"{place}: {name} holds values that are not finite")
    return replace(row.layer, weights=layout.join(row.layer, weights))


def _are_finite(values: Array) -> bool:
    """Tell whether no value is infinite or NaN, and report that they are read."""
    advance(values.nbytes)
    flat = values.reshape(-1)
    return all(np.isfinite(flat[at : at + _BLOCK]).all() for at in range(0, flat.size, _BLOCK))


# ---- input shapes --------------------------------------------------------------------------------


# Infer the shape of a model's input from the first layer's weights, where the file lacks it.
#
# Keras 2.2.4 and 2.3.1 lose it for a Sequential with an explicit InputLayer; models built on their
# first call never had it.


def with_input_shape(
    root: LayerSpec, stored: Mapping[LayerPath, Mapping[str, StoredArray]]
) -> LayerSpec:
    """Set the shapes of the model's inputs, as far as the first layer's weights determine them.

    Returns the model itself where the file states them all.
    """
    graph = root.graph
    if graph is None:
        return root
    layers = {layer.name: layer for layer in graph.layers}
    inputs = [layers[ref.layer] for ref in leaves(graph.inputs)]
    free = [one for one in inputs if one.class_name == "InputLayer" and one.config["shape"] is None]
    for first in free:
        shape = _shape_for(_chain(graph, first.name), stored)
        layers[first.name] = replace(first, config={**first.config, "shape": shape})
    return replace(root, graph=replace(graph, layers=tuple(layers.values()))) if free else root


def _chain(graph: Graph, name: str) -> list[LayerSpec]:
    """Return the layers that read an input, each what the one before gives."""
    readers: dict[str, str] = {}
    for call in graph.calls:
        for ref in islice(tensors(call.args), 1):
            readers.setdefault(ref.layer, call.layer)
    chain: dict[str, LayerSpec] = {}
    while name in readers and readers[name] not in chain:
        name = readers[name]
        chain[name] = graph.layer(name)
    return list(chain.values())


def _shape_for(
    chain: Sequence[LayerSpec], stored: Mapping[LayerPath, Mapping[str, StoredArray]]
) -> Shape | None:
    if not chain:
        return None
    follower = next((one for one in chain if one.class_name not in _KEEP_SHAPE), chain[0])
    inner: LayerSpec | None = follower
    while inner is not None and inner.parts:
        inner = next(iter(inner.parts.values()))
    path = next((path for path in stored if path[:1] == (follower.name,)), ())
    shape = _input_shape(inner, stored.get(path, {}))
    if shape is None:
        return None
    steps = follower.class_name == "TimeDistributed" or (len(shape) == 2 and _has_steps(chain))
    return (shape[0], None, *shape[1:]) if steps and follower.class_name != "Embedding" else shape


# Layers that keep any shape, and layers that need (B, T, F).
_KEEP_SHAPE = frozenset(
    "Activation ActivityRegularization AlphaDropout BatchNormalization Dropout ELU GaussianDropout "
    "GaussianNoise GroupNormalization Identity LayerNormalization LeakyReLU Masking PReLU "
    "RMSNormalization ReLU Rescaling Softmax SpatialDropout1D ThresholdedReLU "
    "UnitNormalization".split()
)
_NEED_STEPS = frozenset(
    "AveragePooling1D Bidirectional Conv1D Cropping1D GRU GlobalAveragePooling1D "
    "GlobalMaxPooling1D LSTM Masking MaxPooling1D RNN SeparableConv1D SimpleRNN SpatialDropout1D "
    "TimeDistributed UpSampling1D ZeroPadding1D".split()
)


def _has_steps(chain: Sequence[LayerSpec]) -> bool:
    """Tell whether the first layers, as long as they keep the rank, include one with time steps."""
    for layer in chain:
        if layer.class_name in _NEED_STEPS:
            return True
        if layer.class_name not in _KEEP_SHAPE | {"Dense"}:
            return False
    return False


def _input_shape(
    layer: LayerSpec | None, weights: Mapping[str, StoredArray]
) -> tuple[int | None, ...] | None:
    if layer is None:
        return None
    if layer.class_name == "Embedding":
        return (None, None)
    if "kernel" not in weights or len(weights["kernel"].shape) < 2:
        return None
    if layer.class_name == "EinsumDense":  # whose equation does not need it
        return None
    width = weights["kernel"].shape[-2] * layer.config.get("groups", 1)
    return (None, width) if layer.class_name == "Dense" else (None, None, width)


# ---- masked steps --------------------------------------------------------------------------------


# Outputs at masked steps in files of tf.keras 2.0 to 2.2, whose Keras versions overlap.
#
# Measured on a CPU with TensorFlow 1.14, 2.0.4, 2.1.4 and 2.2.3: inside
# ``Bidirectional(return_sequences=True)`` the LSTM and GRU of TensorFlow 2.0 and 2.1 repeat the
# previous output at masked steps where their options allow the cuDNN kernel (``could_use_cudnn`` in
# ``layers/recurrent_v2.py``); all other layers, and all layers of 1.14 and since 2.2, give zeros.
# ``keras_version`` is 2.2.4-tf in 1.14 to 2.0 and 2.3.0-tf in 2.1 and 2.2. The rest tells them
# apart: 2.2 puts ``lstm_cell`` into the names of weights, and 1.x writes dtypes otherwise
# (``generations.is_tensorflow_1``).


OVERLAPPING = ("2.2.4-tf", "2.3.0-tf")
_CELL = re.compile(r"(lstm|gru)_cell(_\d+)?")
# Options with which TensorFlow 2.0 and 2.1 take the cuDNN kernel.
_KERNEL: Mapping[str, object] = {
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "recurrent_dropout": 0.0,
    "unroll": False,
    "use_bias": True,
    "return_sequences": True,
}


def resolve_masked_steps(
    root: LayerSpec,
    paths: WeightPaths,
    generation: Generation,
    of_tensorflow_1: Set[str],
) -> tuple[LayerSpec, list[str]]:
    """Set the outputs at masked steps, by Keras version and names of weights; return notes.

    ``of_tensorflow_1``: places of layers that compute as in TensorFlow 1.
    """
    if generation.version not in OVERLAPPING:
        return root, []
    repeating: list[bool] = []

    def apply(layer: LayerSpec, *, wrapped: bool) -> LayerSpec:
        halves = layer.class_name == "Bidirectional"
        layer = layer.map_inner(lambda _, inner: apply(inner, wrapped=halves))
        if not wrapped or layer.path not in paths or not _may_use_kernel(layer):
            return layer
        if layer.place in of_tensorflow_1:  # zeros, and not ambiguous
            return layer
        repeating.append(not _has_cell(paths[layer.path]))
        rule = "previous_output" if repeating[-1] else "zeros"
        return replace(layer, semantics={**layer.semantics, "masked_output": rule})

    root = apply(root, wrapped=False)
    if not repeating or not has_mask(root):
        return root, []
    does = "repeat the previous output" if repeating[0] else "give zeros"
    writer = "2.0 and 2.1" if repeating[0] else "2.2"
    return root, [
        f"keras_version {generation.version} belongs to several TensorFlows: masked steps of "
        f"Bidirectional LSTM and GRU layers {does}, as TensorFlow {writer} does on a CPU, by the "
        "names of the weights"
    ]


def _may_use_kernel(layer: LayerSpec) -> bool:
    """Tell whether the options of a layer allow the cuDNN kernel."""
    return (
        layer.class_name in ("LSTM", "GRU")
        and all(layer.config[key] == value for key, value in _KERNEL.items())
        and layer.semantics["masked_output"] == "zeros"
        and layer.config.get("reset_after", True)
    )


def _has_cell(names: Mapping[str, str]) -> bool:
    """Tell whether the names of a layer's weights have a cell, as since TensorFlow 2.2."""
    segments = names.get("kernel", "").split("/")
    return len(segments) > 1 and _CELL.fullmatch(segments[-2]) is not None


# ---- repeated layers -----------------------------------------------------------------------------


# A note on one layer of Keras that is in several places of the file.


_PARTS = frozenset(("forward_layer", "backward_layer", "layer", "cell"))
_PLACES_SHOWN = 3


def repeated_note(stored: Mapping[LayerPath, Mapping[str, StoredArray]]) -> Iterator[str]:
    """Yield a note if the file holds the weights of several layers once: they are one in Keras.

    stored: the arrays in the file, by the paths of the layers. A layer that is called in a nested
    model and outside of it becomes two modules. (Older formats hold its weights twice, as those of
    two layers.)
    """
    layers: dict[frozenset[str], list[LayerPath]] = {}
    for path, arrays in stored.items():
        layers.setdefault(frozenset(array.path for array in arrays.values()), []).append(path)
    places = [
        printable("/".join(name for name in path if name not in _PARTS))
        for found in layers.values()
        if len(found) > 1
        for path in found
    ]
    if places:
        more = f" and {len(places) - _PLACES_SHOWN} more" * (len(places) > _PLACES_SHOWN)
        yield (
            f"one layer of Keras in several places: {', '.join(places[:_PLACES_SHOWN])}{more}; "
            "each place is a module here, which trains apart unless you share it (docs/training.md)"
        )
