"""Where each weight of a layer belongs, and in which layout a generation stores it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from keras2torch_birnn.schema import CELL_GATES, SCHEMA
from keras2torch_birnn.schema.custom_layers import named_weights
from keras2torch_birnn.schema.recurrent import STACK
from keras2torch_birnn.schema.shape_inference import expected_weights
from keras2torch_birnn.spec import Array, LayerPath, LayerSpec, Shape

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


# ---- slots ---------------------------------------------------------------------------------------


# Weight slots of a model, in the order in which Keras creates them.


Fits = Callable[[tuple[str, ...]], bool]


def _anywhere(segments: tuple[str, ...]) -> bool:
    return True


@dataclass(frozen=True)
class Half:
    """A half of a Bidirectional, and a test for names of its weights."""

    path: LayerPath
    fits: Fits


@dataclass(frozen=True)
class Slot:
    """One weight of the layer at ``path``. ``label`` is the end of its path in a legacy file."""

    path: LayerPath
    name: str
    label: str
    shape: Shape | None
    trainable: bool
    # Tells whether the segments of a name in the file can belong to this slot.
    fits: Fits
    # One segment that ``fits`` requires, if any.
    within: str = ""
    half: Half | None = None
    # True for a cell in a stack, where names repeat.
    stacked: bool = False


def _forward(segments: tuple[str, ...]) -> bool:
    return any(s.startswith("forward_") for s in segments)


def _backward(segments: tuple[str, ...]) -> bool:
    # Keras 3 keeps a custom backward layer's own name, so only the forward half is sure.
    return not _forward(segments)


_HALVES = {"forward_layer": _forward, "backward_layer": _backward}


def slots(
    layer: LayerSpec,
    trainable: bool = True,
    fits: Fits = _anywhere,
    layout: Layout = KERAS2,
    prefix: str = "",
    within: str = "",
    half: Half | None = None,
    stacked: bool = False,
) -> Iterator[Slot]:
    """Yield every slot of the layer and of all inside it.

    Within one layer trainable weights come first (Keras' ``Layer.weights``). ``prefix``: that of
    a Bidirectional before the layer's name. ``within``: the layer of a model in a model.
    """
    trainable = trainable and layer.config.get("trainable", True)
    not_trained = SCHEMA[layer.class_name].not_trained if layer.class_name in SCHEMA else ()
    if layout.own_names:
        within = prefix + layer.name
        fits = _last(within)
    own = named_weights(layer)  # of a plugin's layer
    shapes = layout.shapes(layer, {}) if own is None else own
    for name, shape in shapes.items():
        learns = trainable and name not in not_trained
        inside = name.rpartition("/")[0]  # "query/kernel": the kernel of a layer inside this one
        own_fits = _both(fits, _last(inside)) if inside else fits
        label = layout.label(name)
        of_half = _half_inside(layer.path, inside) or half
        yield Slot(layer.path, name, label, shape, learns, own_fits, within, of_half, stacked)
    stack = layer.class_name == STACK
    for key, part in layer.parts.items():
        part_fits = _both(fits, _HALVES[key]) if key in _HALVES else fits
        of_half = Half(part.path, part_fits) if key in _HALVES else half
        if stack:  # tf.keras and Keras 3 put the cell's name there
            part_fits = _both(fits, _last(part.name))
        start = key.removesuffix("layer")  # "forward_", "backward_"
        yield from slots(part, trainable, part_fits, layout, start, within, of_half, stack)
    for inner in layer.graph.layers if layer.graph else ():
        deep, name = bool(layer.path), inner.name
        inner_fits = _both(fits, _contains(name)) if deep else _anywhere
        yield from slots(inner, trainable, inner_fits, layout, within=name if deep else "")


def _half_inside(path: LayerPath, inside: str) -> Half | None:
    """Return the half of a Bidirectional that a layer inside a plugin's layer belongs to."""
    parts = tuple(inside.split("/"))
    at = next((number for number, part in enumerate(parts) if part in _HALVES), None)
    return None if at is None else Half((*path, *parts[: at + 1]), _HALVES[parts[at]])


def _contains(name: str) -> Fits:
    return lambda segments: name in segments


def _last(name: str) -> Fits:
    return lambda segments: segments[-1:] == (name,)


def _both(first: Fits, second: Fits) -> Fits:
    return lambda segments: first(segments) and second(segments)


def replace_layers(layer: LayerSpec, layers: Mapping[LayerPath, LayerSpec]) -> LayerSpec:
    """Return the tree with each of ``layers`` in the place that its path names.

    What a layer is made of stays as the tree has it.
    """
    new = replace(layers.get(layer.path, layer), parts=layer.parts, graph=layer.graph)
    return new.map_inner(lambda _, one: replace_layers(one, layers))
