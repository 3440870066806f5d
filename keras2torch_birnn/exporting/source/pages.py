"""The source text of a layer: that of its page, where it has one, else that of its module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from keras2torch_birnn.exporting.source.built import emit_module
from keras2torch_birnn.exporting.source.emission import MASK_REACHES, Emission, Emit, refuse
from keras2torch_birnn.exporting.source.time_distributed import at_every_step
from keras2torch_birnn.layers.time_distributed import TimeDistributed
from keras2torch_birnn.schema import PAGES
from keras2torch_birnn.schema.custom_layers import custom_layer_of
from keras2torch_birnn.schema.pages import Pages
from keras2torch_birnn.spec import LayerSpec

# Families that are not written, and why.
NOT_WRITTEN: Mapping[str, str] = {
    "model": "its layers are written, and an input is an argument",
    "conv_lstm": "torch has no loop of convolutions, so it would be a copy of the module here",
}
# Families with a page: some of their classes have a text that is better to read than a module.
_PAGES = frozenset("activation convolution merging normalization pooling recurrent".split())
EMITTERS: Pages[Emit] = Pages(
    "keras2torch_birnn.exporting.source",
    "EMITTERS",
    {name: page for name, page in PAGES.items() if page in _PAGES},
)


def emit(layer: LayerSpec, name: str, built: nn.Module) -> Emission:
    """Write a layer as source text; ``name``: of its attribute; ``built``: the converted layer.

    Raises:
        UnsupportedLayerError: it has no such form.
    """
    kind, inner = layer.class_name, layer.parts.get("layer")
    if kind == "TimeDistributed" and inner is not None:
        reached = layer.semantics.get(MASK_REACHES, False)
        inner = replace(inner, semantics={**inner.semantics, MASK_REACHES: reached})
        if isinstance(built, TimeDistributed):
            return at_every_step(inner, emit(inner, name, built.layer))
        return emit(inner, name, built)
    page = PAGES.get(kind)
    if custom_layer_of(layer) is not None or page is None or page in NOT_WRITTEN:
        raise refuse(layer)
    own = EMITTERS.find_table(kind) if kind in EMITTERS else {}
    text = own[kind](layer, name, built) if kind in own else None
    return text or emit_module(layer, name, built)
