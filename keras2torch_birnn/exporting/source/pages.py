"""All pages of layer families in one table."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source import (
    activation,
    attention,
    augmentation,
    convolution,
    dense,
    dropout,
    embedding,
    hashing,
    local,
    masking,
    merging,
    normalization,
    pooling,
    preprocessing,
    recurrent,
    reshaping,
    resizing,
    spectrograms,
    time_distributed,
)
from keras2torch_birnn.exporting.source.emission import Emission, Emit, refuse
from keras2torch_birnn.schema import joined
from keras2torch_birnn.schema.custom_layers import custom_layer_of
from keras2torch_birnn.spec import LayerSpec


def emit(layer: LayerSpec, name: str) -> Emission:
    """Write a layer as source text; ``name``: of its attribute.

    Raises:
        UnsupportedLayerError: it has no such form.
    """
    if custom_layer_of(layer) is not None or layer.class_name not in EMITTERS:
        raise refuse(layer)
    return EMITTERS[layer.class_name](layer, name)


EMITTERS: Mapping[str, Emit] = joined(
    recurrent.EMITTERS,
    time_distributed.emitters(emit),
    dense.EMITTERS,
    embedding.EMITTERS,
    masking.EMITTERS,
    activation.EMITTERS,
    dropout.EMITTERS,
    normalization.EMITTERS,
    reshaping.EMITTERS,
    resizing.EMITTERS,
    spectrograms.EMITTERS,
    preprocessing.EMITTERS,
    pooling.EMITTERS,
    convolution.EMITTERS,
    local.EMITTERS,
    hashing.EMITTERS,
    merging.EMITTERS,
    attention.EMITTERS,
    augmentation.EMITTERS,
)

__all__ = ["EMITTERS", "emit"]
