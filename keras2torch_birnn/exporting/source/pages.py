"""The tables of all pages of layer families, and the source text of a layer."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.emission import Emission, Emit, refuse
from keras2torch_birnn.schema import PAGES
from keras2torch_birnn.schema.custom_layers import custom_layer_of
from keras2torch_birnn.schema.pages import Pages
from keras2torch_birnn.spec import LayerSpec

# Families without a page, and why.
NOT_WRITTEN: Mapping[str, str] = {
    "model": "its layers are written, and an input is an argument",
    "conv_lstm": "torch has no loop of convolutions, so it would be a copy of the module here",
}
EMITTERS: Mapping[str, Emit] = Pages(
    "keras2torch_birnn.exporting.source",
    "EMITTERS",
    {name: page for name, page in PAGES.items() if page not in NOT_WRITTEN},
)


def emit(layer: LayerSpec, name: str) -> Emission:
    """Write a layer as source text; ``name``: of its attribute.

    Raises:
        UnsupportedLayerError: it has no such form.
    """
    if custom_layer_of(layer) is not None or layer.class_name not in EMITTERS:
        raise refuse(layer)
    return EMITTERS[layer.class_name](layer, name)
