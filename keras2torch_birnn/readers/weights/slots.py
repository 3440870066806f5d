"""Weight slots of a model, in the order in which Keras creates them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from keras2torch_birnn.readers.weights.layouts import KERAS2, Layout
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.schema.cells import STACK
from keras2torch_birnn.schema.custom_layers import named_weights
from keras2torch_birnn.spec import LayerSpec, Shape

Key = tuple[str, ...]


Fits = Callable[[tuple[str, ...]], bool]


def _anywhere(segments: tuple[str, ...]) -> bool:
    return True


@dataclass(frozen=True)
class Half:
    """A half of a Bidirectional, and a test for names of its weights."""

    owner: Key
    fits: Fits


@dataclass(frozen=True)
class Slot:
    """One weight that a layer needs. ``owner`` is the path from the root to the layer.

    ``label`` is the end of its path in a legacy file.
    """

    owner: Key
    name: str
    label: str
    shape: Shape | None
    trainable: bool
    place: str
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
    owner: Key = (),
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
        of_half = _half_inside(owner, inside) or half
        yield Slot(
            owner, name, label, shape, learns, layer.place, own_fits, within, of_half, stacked
        )
    stack = layer.class_name == STACK
    for key, part in layer.parts.items():
        part_fits = _both(fits, _HALVES[key]) if key in _HALVES else fits
        of_half = Half((*owner, key), part_fits) if key in _HALVES else half
        if stack:  # tf.keras and Keras 3 put the cell's name there
            part_fits = _both(fits, _last(part.name))
        start = key.removesuffix("layer")  # "forward_", "backward_"
        yield from slots(
            part, (*owner, key), trainable, part_fits, layout, start, within, of_half, stack
        )
    for inner in layer.graph.layers if layer.graph else ():
        deep, name = bool(owner), inner.name
        inner_fits = _both(fits, _contains(name)) if deep else _anywhere
        yield from slots(
            inner, (*owner, name), trainable, inner_fits, layout, within=name if deep else ""
        )


def _half_inside(owner: Key, inside: str) -> Half | None:
    """Return the half of a Bidirectional that a layer inside a plugin's layer belongs to."""
    parts = tuple(inside.split("/"))
    at = next((number for number, part in enumerate(parts) if part in _HALVES), None)
    return None if at is None else Half((*owner, *parts[: at + 1]), _HALVES[parts[at]])


def _contains(name: str) -> Fits:
    return lambda segments: name in segments


def _last(name: str) -> Fits:
    return lambda segments: segments[-1:] == (name,)


def _both(first: Fits, second: Fits) -> Fits:
    return lambda segments: first(segments) and second(segments)


def layers_by_owner(layer: LayerSpec, owner: Key = ()) -> Iterator[tuple[Key, LayerSpec]]:
    """Yield every layer with its path from the root; inner layers before those around them."""
    for key, part in layer.parts.items():
        yield from layers_by_owner(part, (*owner, key))
    for inner in layer.graph.layers if layer.graph else ():
        yield from layers_by_owner(inner, (*owner, inner.name))
    yield owner, layer


def replace_layers(layer: LayerSpec, layers: Mapping[Key, LayerSpec], owner: Key = ()) -> LayerSpec:
    """Return the tree with each of ``layers`` in the place that its path names.

    What a layer is made of stays as the tree has it.
    """
    new = replace(layers.get(owner, layer), parts=layer.parts, graph=layer.graph)
    return new.map_inner(lambda key, one: replace_layers(one, layers, (*owner, key)))


def change_layers(
    layer: LayerSpec,
    arrays: Mapping[Key, Mapping[str, Any]],
    change: Callable[[LayerSpec, Mapping[str, Any]], LayerSpec],
    owner: Key = (),
) -> LayerSpec:
    """Return the tree with ``change(layer, arrays)`` applied to every layer that ``arrays`` has."""
    layers = {
        key: change(one, arrays[key]) for key, one in layers_by_owner(layer, owner) if key in arrays
    }
    return replace_layers(layer, layers, owner)
