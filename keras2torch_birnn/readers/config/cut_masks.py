"""Follow masks through a graph without building it: may one cross a cut, and would it matter?

A cut model has no way to be given the mask that a layer before the cut made. What is in neither
table may use a mask. ``tests/readers/test_cut_masks.py`` compares them with the mask flow of the
converters, and says what they lack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from keras2torch_birnn.readers.config.text_layers import is_text_layer
from keras2torch_birnn.schema import CLASSES, OPS, RECURRENT, SCHEMA
from keras2torch_birnn.schema.calls import as_called
from keras2torch_birnn.spec import Graph, LayerSpec, TensorRef, leaves, tensors

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


@dataclass(frozen=True)
class MaskSource:
    """The layer that made a mask. ``sure``: False if it, or one on the way, is of another package.

    Whether such a layer makes a mask, or hands one on, is in its code. ``lost``: it cannot
    cross the cut.
    """

    place: str
    sure: bool = True
    lost: bool = False


MaskSources = Sequence[MaskSource | None]


def carry_masks(graph: Graph, masks: MaskSources) -> dict[TensorRef, MaskSource]:
    """Return the tensors of a graph that may have a mask. ``masks``: those of its inputs."""
    found: dict[TensorRef, MaskSource] = {}
    inputs = dict(zip((ref.layer for ref in leaves(graph.inputs)), masks, strict=False))
    for call in graph.calls:
        layer = as_called(graph.layer(call.layer), call.kwargs)
        if layer.class_name == "InputLayer":
            after: MaskSources = [inputs.get(layer.name)]
        else:
            came = [found.get(ref) for ref in _seen(call.args)]
            passed = [found.get(ref) for ref in _seen(call.kwargs.get("mask"))]
            after = _after(layer, came, passed, is_passed="mask" in call.kwargs)
        found |= {
            TensorRef(call.layer, call.index, number): source
            for number, source in enumerate(after)
            if source is not None
        }
    return found


def find_user(graph: Graph, sources: MaskSources) -> tuple[str, MaskSource] | None:
    """Return the first layer that may compute with a mask of one of these inputs, and the mask."""
    sources = [one and replace(one, lost=True) for one in sources]
    found = carry_masks(graph, sources)
    for call in graph.calls:
        layer = graph.layer(call.layer)
        alone = "mask" in call.kwargs and len(call.args) == 1  # a mask that is passed counts alone
        read = call.kwargs["mask"] if alone else () if "ignore_mask" in call.kwargs else call.args
        came = [found.get(ref) for ref in _seen(read)]
        gone = [one if one and one.lost else None for one in came]
        if layer.graph is not None:
            user = find_user(layer.graph, gone)
            if user is not None:
                return user
        elif may_use(layer) and (source := _worst(gone)):
            return layer.place, source
    return None


def may_use(layer: LayerSpec) -> bool:
    """Tell whether the outputs of a layer may depend on a mask."""
    class_name = layer.class_name
    return class_name not in STOPS | PASSES | OPS.keys() and class_name not in _MAKE


def _seen(structure: object) -> list[TensorRef]:
    return [ref for ref in tensors(structure) if ref.masked]


def _after(
    layer: LayerSpec, came: MaskSources, passed: MaskSources, *, is_passed: bool
) -> MaskSources:
    """Return the mask that the outputs of a call may have."""
    if layer.graph is not None:
        inner = carry_masks(layer.graph, passed if is_passed else came)
        return [inner.get(ref) for ref in leaves(layer.graph.outputs)]
    first = _worst((*came, *passed))
    if is_passed and first is None:  # a mask that the model computes
        first = MaskSource(layer.place)
    return [_after_layer(layer, first)]


def _worst(sources: MaskSources) -> MaskSource | None:
    """Return the mask that stands for several that a layer combines: a lost one, if any."""
    return max(filter(None, sources), key=lambda one: (one.lost, one.sure), default=None)


def _after_layer(layer: LayerSpec, first: MaskSource | None) -> MaskSource | None:
    config: Mapping[str, object] = layer.parts.get("forward_layer", layer).config
    if is_text_layer(layer) or layer.class_name in STOPS:
        return None
    if layer.class_name == "Embedding":
        made = config.get("mask_zero")
        return MaskSource(layer.place) if made else None
    if layer.class_name == "Masking":
        return MaskSource(layer.place)
    if layer.class_name in OPS:
        kinds = layer.semantics.get("kinds")
        return first if kinds and kinds["passes_mask"] is not False else None
    inside = layer.parts.get("layer")  # of a TimeDistributed
    plain = inside is not None and inside.graph is None and inside.class_name not in _MAKE
    if layer.class_name not in SCHEMA or (layer.class_name == "TimeDistributed" and not plain):
        return replace(first or MaskSource(layer.place), sure=False)
    if layer.class_name in (*RECURRENT, "Bidirectional") and not config.get("return_sequences"):
        return None
    return first
