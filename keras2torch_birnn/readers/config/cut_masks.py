"""Which tensors of a graph may have a mask, and which layers may use one.

A part of a model has no way to be given the mask that a layer before it made. What is in neither
table may use a mask. ``tests/readers/test_cut_masks.py`` compares them with the converters.
"""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.readers.config.text_layers import is_text_layer
from keras2torch_birnn.schema import CLASSES, OPS, RECURRENT, SCHEMA
from keras2torch_birnn.schema.dtype_flow import Node
from keras2torch_birnn.spec import Call, Graph, LayerSpec, tensors

# Layers after which no tensor has a mask, and which do not look at one: nearly all of these pages.
_UNMASKED = (*("augmentation", "convolution", "dense", "pooling", "reshaping", "resizing"),)
STOPS = frozenset(name for page in _UNMASKED for name in CLASSES[page]) - frozenset(
    ("Dense", "GlobalAveragePooling1D")
) | frozenset(("CategoryEncoding", "Dot", "Merge", "RMSNormalization"))
# Layers that hand a mask on and compute the same with and without one.
PASSES = frozenset(CLASSES["dropout"]) | frozenset(
    "Activation Add Average Concatenate Dense ELU GroupNormalization InputLayer "
    "LayerNormalization LeakyReLU Normalization PReLU ReLU Rescaling "
    "Subtract ThresholdedReLU UnitNormalization".split()
)
_MAKE = ("Embedding", "Masking")


def find_masks(graph: Graph) -> dict[Node, str]:
    """Return the calls whose outputs may have a mask -> the layer that made it, of this graph.

    Whether a layer of an unknown class makes a mask, or hands one on, is in its code: it counts as
    one that does.
    """
    found: dict[Node, str] = {}
    for call in graph.calls:
        layer, source = graph.layer(call.layer), _handed_on(call, found)
        passed = call.kwargs.get("mask") is not None
        if _makes_mask(layer) or not is_ours(layer) or (passed and source is None):
            source = layer.name
        if source is not None and not _ends_mask(layer):
            found[call.layer, call.index] = source
    return found


def carry_masks(graph: Graph, given: Mapping[str, str]) -> dict[Node, str]:
    """Return the calls whose outputs may have one of the given masks, which inputs have by name."""
    found: dict[Node, str] = {}
    for call in graph.calls:
        layer = graph.layer(call.layer)
        source = given.get(layer.name, _handed_on(call, found))
        if source is not None and layer.class_name not in _MAKE and not _ends_mask(layer):
            found[call.layer, call.index] = source
    return found


def _handed_on(call: Call, found: Mapping[Node, str]) -> str | None:
    read = tensors((call.args, call.kwargs.get("mask")))
    return next(
        (found[ref.layer, ref.call] for ref in read if (ref.layer, ref.call) in found), None
    )


def is_ours(layer: LayerSpec) -> bool:
    """Tell whether a layer is one of Keras' whose treatment of masks is known."""
    return layer.class_name in SCHEMA or layer.class_name in OPS or is_text_layer(layer)


def _makes_mask(layer: LayerSpec) -> bool:
    return any(
        one.class_name == "Masking"
        or (one.class_name == "Embedding" and bool(one.config.get("mask_zero")))
        for one in layer.walk()
    )


def may_use(layer: LayerSpec) -> bool:
    """Tell whether the outputs of a layer, or of one in it, may depend on a mask."""
    if layer.graph is not None:
        return any(map(may_use, layer.graph.layers))
    return layer.class_name not in STOPS | PASSES | OPS.keys() and layer.class_name not in _MAKE


def _ends_mask(layer: LayerSpec) -> bool:
    """Tell whether no output of a layer has a mask."""
    config: Mapping[str, object] = layer.parts.get("forward_layer", layer).config
    last = layer.class_name in (*RECURRENT, "Bidirectional") and not config.get("return_sequences")
    return last or is_text_layer(layer) or layer.class_name in STOPS
