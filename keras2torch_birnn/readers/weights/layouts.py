"""Layouts of weights in files, and their conversion to the common one, that of Keras 2.

cuDNN layout, per Keras 2.2.4 ``engine/saving.py`` ``_convert_rnn_weights``: per gate the input
kernel's flat buffer *is* the (units, input) matrix, the recurrent kernel is the matrix that
multiplies from the left, and there are two biases per gate, input ones first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from keras2torch_birnn.schema import CELL_GATES
from keras2torch_birnn.schema.shape_inference import expected_weights
from keras2torch_birnn.spec import Array, LayerSpec, Shape

# "kernel:0", "kernel_1:0" (made unique by TensorFlow 1), "kernel" (Keras 3)
_BASENAME = re.compile(r"(.+?)(?:_\d+)?(?::\d+)?")


class HasShape(Protocol):
    """An array, read or not: anything with a shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        ...


@dataclass(frozen=True)
class Layout:
    """Layout of a layer's weights in files of one generation.

    ``shapes(layer, found)``: name -> shape of what the file holds for a layer, given what was found
    there (empty at first). ``label(name)``: the last segment of a weight's path. ``split(path,
    labels)``: the segments before that, and that; ``labels``: those of the weights that a layer
    needs, or none if nobody declares them. ``infer(layer, found)``: the layer with options that its
    weights determine. ``join(layer, arrays)``: Keras 2's weights. ``own_names``: the last of those
    segments is exactly the innermost layer's name.
    """

    shapes: Callable[[LayerSpec, Mapping[str, HasShape]], Mapping[str, Shape]]
    label: Callable[[str], str]
    split: Callable[[str, Collection[str]], tuple[tuple[str, ...], str]]
    infer: Callable[[LayerSpec, Mapping[str, HasShape]], LayerSpec]
    join: Callable[[LayerSpec, Mapping[str, Array]], dict[str, Any]]
    own_names: bool = False


def _split(entry: str, labels: Collection[str]) -> tuple[tuple[str, ...], str]:
    *segments, last = entry.split("/")
    match = _BASENAME.fullmatch(last)
    return tuple(segments), match[1] if match else last


def _shapes(layer: LayerSpec, stored: Mapping[str, HasShape]) -> Mapping[str, Shape]:
    expected = dict(expected_weights(layer))
    if is_cudnn(layer, stored):
        expected["bias"] = stored["bias"].shape
    return expected


def _join(layer: LayerSpec, weights: Mapping[str, Array]) -> dict[str, Any]:
    if is_cudnn(layer, weights):
        return from_cudnn(layer, weights)
    return dict(weights)


def is_cudnn(layer: LayerSpec, weights: Mapping[str, HasShape]) -> bool:
    """Tell whether weights of an LSTM or GRU are in cuDNN's layout: the bias is one long vector."""
    if layer.class_name not in ("LSTM", "GRU") or "bias" not in weights:
        return False
    doubled = 2 * CELL_GATES[layer.class_name] * layer.config["units"]
    return tuple(weights["bias"].shape) == (doubled,)


def is_summed(layer: LayerSpec, name: str, weights: Mapping[str, HasShape]) -> bool:
    """Tell whether a weight's second half is added to its first: cuDNN's two biases of an LSTM."""
    return name == "bias" and layer.class_name == "LSTM" and is_cudnn(layer, weights)


def infer_reset_after(layer: LayerSpec, weights: Mapping[str, HasShape]) -> LayerSpec:
    """Infer ``reset_after`` of a GRU from the shape of its bias, whatever its config says."""
    if layer.class_name not in ("GRU", "GRUCell") or "bias" not in weights:
        return layer
    reset_after = is_cudnn(layer, weights) or len(weights["bias"].shape) == 2
    return replace(layer, config={**layer.config, "reset_after": reset_after})


def from_cudnn(layer: LayerSpec, weights: Mapping[str, Array]) -> dict[str, Any]:
    """Turn cuDNN's layout into Keras' own.

    ``kernel`` (input, G*units), ``recurrent_kernel`` (units, G*units), ``bias`` (2*G*units,) give
    the same with ``bias`` (G*units,) for an LSTM and (2, G*units) for a GRU (reset_after).
    """
    gates, units = CELL_GATES[layer.class_name], layer.config["units"]
    kernels = np.split(weights["kernel"], gates, axis=1)
    recurrent = np.split(weights["recurrent_kernel"], gates, axis=1)
    biases = weights["bias"].reshape(2, gates * units)
    return {
        "kernel": np.concatenate([k.reshape(units, -1).T for k in kernels], axis=1),
        "recurrent_kernel": np.concatenate([k.T for k in recurrent], axis=1),
        "bias": biases.sum(axis=0) if layer.class_name == "LSTM" else biases,
    }


KERAS2 = Layout(_shapes, lambda name: name.rpartition("/")[2], _split, infer_reset_after, _join)
