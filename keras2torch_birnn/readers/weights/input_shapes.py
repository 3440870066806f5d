"""Infer the shape of a model's input from the first layer's weights, where the file lacks it.

Keras 2.2.4 and 2.3.1 lose it for a Sequential with an explicit InputLayer; models built on their
first call never had it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.weights.slots import Key
from keras2torch_birnn.spec import LayerSpec


def with_input_shape(root: LayerSpec, stored: Mapping[Key, Mapping[str, StoredArray]]) -> LayerSpec:
    """Set the shape of the model's input, as far as the first layer's weights determine it."""
    graph = root.graph
    if graph is None or len(graph.layers) < 2:
        return root
    first, *chain = graph.layers
    if first.class_name != "InputLayer" or first.config["shape"] is not None:
        return root
    follower = next((one for one in chain if one.class_name not in _KEEP_SHAPE), chain[0])
    inner: LayerSpec | None = follower
    while inner is not None and inner.parts:
        inner = next(iter(inner.parts.values()))
    owner = next((key for key in stored if key[0] == follower.name), None)
    shape = _input_shape(inner, stored.get(owner, {}) if owner else {})
    if shape is None:
        return root
    steps = follower.class_name == "TimeDistributed" or (len(shape) == 2 and _has_steps(chain))
    shape = (shape[0], None, *shape[1:]) if steps and follower.class_name != "Embedding" else shape
    named = replace(first, config={**first.config, "shape": shape})
    return replace(root, graph=replace(graph, layers=(named, *graph.layers[1:])))


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
