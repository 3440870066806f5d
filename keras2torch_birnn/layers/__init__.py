"""One page per family of layers: torch module, weight mapping and converter together."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.layers import (
    activation,
    attention,
    augmentation,
    conv_lstm,
    convolution,
    dense,
    dropout,
    embedding,
    hashing,
    local,
    masking,
    merging,
    model,
    normalization,
    pooling,
    preprocessing,
    recurrent,
    reshaping,
    resizing,
    spectrograms,
    time_distributed,
)
from keras2torch_birnn.layers.registry import Converter, register
from keras2torch_birnn.schema import joined

CONVERTERS: Mapping[str, Converter] = joined(
    model.CONVERTERS,
    recurrent.CONVERTERS,
    conv_lstm.CONVERTERS,
    time_distributed.CONVERTERS,
    dense.CONVERTERS,
    embedding.CONVERTERS,
    masking.CONVERTERS,
    activation.CONVERTERS,
    dropout.CONVERTERS,
    normalization.CONVERTERS,
    reshaping.CONVERTERS,
    resizing.CONVERTERS,
    spectrograms.CONVERTERS,
    pooling.CONVERTERS,
    convolution.CONVERTERS,
    local.CONVERTERS,
    preprocessing.CONVERTERS,
    hashing.CONVERTERS,
    merging.CONVERTERS,
    attention.CONVERTERS,
    augmentation.CONVERTERS,
)
register(CONVERTERS)
