"""Say what the mask does at each layer of a usual model, without building the model.

``layers/graph.py`` knows it for every model, and imports torch; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.readers.config.cut_masks import PASSES, STOPS, carry_masks
from keras2torch_birnn.schema import CELL_GATES, OPS, SCHEMA
from keras2torch_birnn.spec import Call, Graph, LayerSpec, tensors

# Layers that may be refused when they are built, not before.
REFUSED_LATE = frozenset(
    "BatchNormalization Resizing UpSampling1D UpSampling2D UpSampling3D".split()
)
# Layers that hand a mask on in every version of Keras, and take one input.
HAND_ON = PASSES - frozenset(
    "Add Average Concatenate Identity Normalization ReLU Rescaling Subtract".split()
)
_MAKES, _USES, _PASSES, _DROPS = "makes it", "uses it", "passes it on", "drops it"


class _NotKnownError(Exception):
    """Only building the model tells."""


def find_mask_effects(model: LayerSpec) -> Mapping[str, str] | None:
    """Return the paths of the calls that a mask reaches or leaves, and what the layer does with it.

    None if only building the model tells that, or whether the model can be built.
    """
    for layer in model.walk():
        if layer.class_name not in SCHEMA or layer.class_name in (*OPS, *REFUSED_LATE):
            return None
        if layer.class_name == "TimeDistributed" and not _is_plain(layer.parts.get("layer")):
            return None
    try:
        return {} if model.graph is None else _follow(model.graph)
    except _NotKnownError:
        return None


def _is_plain(inner: LayerSpec | None) -> bool:
    return inner is not None and inner.class_name in STOPS | PASSES


def _follow(graph: Graph) -> dict[str, str]:
    effects: dict[str, str] = {}
    masked = carry_masks(graph, ())
    for call in graph.calls:
        layer = graph.layer(call.layer)
        if layer.class_name == "InputLayer":
            continue
        came = any(ref.masked and ref in masked for ref in tensors(call.args))
        if layer.graph is not None:
            if came or _follow(layer.graph):  # a mask enters, or one may leave
                raise _NotKnownError
            continue
        effect = _find_effect(layer, call, came=came)
        if effect:
            where = call.layer + (f"#{call.index}" if call.index else "")
            effects[where] = effect
    return effects


def _find_effect(layer: LayerSpec, call: Call, *, came: bool) -> str:
    """Return what a layer does with the mask; empty if none reaches or leaves it."""
    name = layer.class_name
    if call.kwargs and (came or "mask" in call.kwargs):
        raise _NotKnownError
    if name == "Embedding":
        if came:
            raise _NotKnownError
        return _MAKES if layer.config.get("mask_zero") else ""
    if name == "Masking":
        return _PASSES if came else _MAKES
    if not came:
        return ""
    if name in STOPS:
        return _DROPS
    halves = tuple(layer.parts.values()) if name == "Bidirectional" else (layer,)
    loops = all(half.class_name in CELL_GATES for half in halves)
    fails = any(half.semantics.get("masked_output") == "fails" for half in halves)
    several = sum(1 for _ in tensors(call.args)) > 1
    if several or fails or _gives_several(layer) or not (loops or name in HAND_ON):
        raise _NotKnownError
    return _USES if loops else _PASSES


def _gives_several(layer: LayerSpec) -> bool:
    shape = layer.output_shape
    return isinstance(shape, tuple) and any(isinstance(part, tuple) for part in shape)
