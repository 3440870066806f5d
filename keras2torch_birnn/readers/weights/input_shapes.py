"""Infer the shape of a model's input from the first layer's weights, where the file lacks it.

Keras 2.2.4 and 2.3.1 lose it for a Sequential with an explicit InputLayer; models built on their
first call never had it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.weights.slots import Key
from keras2torch_birnn.spec import Graph, LayerSpec, Shape, leaves, tensors


def with_input_shape(root: LayerSpec, stored: Mapping[Key, Mapping[str, StoredArray]]) -> LayerSpec:
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
    chain: Sequence[LayerSpec], stored: Mapping[Key, Mapping[str, StoredArray]]
) -> Shape | None:
    if not chain:
        return None
    follower = next((one for one in chain if one.class_name not in _KEEP_SHAPE), chain[0])
    inner: LayerSpec | None = follower
    while inner is not None and inner.parts:
        inner = next(iter(inner.parts.values()))
    owner = next((key for key in stored if key and key[0] == follower.name), None)
    shape = _input_shape(inner, stored.get(owner, {}) if owner else {})
    if shape is None:
        return None
    steps = follower.class_name == "TimeDistributed" or (len(shape) == 2 and _has_steps(chain))
    return (shape[0], None, *shape[1:]) if steps and follower.class_name != "Embedding" else shape


# Layers that keep any shape, and layers that need (B, T, F).
_KEEP_SHAPE = frozenset(
    "Activation ActivityRegularization AlphaDropout BatchNormalization Dropout GaussianDropout "
    "GaussianNoise Identity LayerNormalization Masking SpatialDropout1D".split()
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
