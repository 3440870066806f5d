"""Schema of Keras' layers: options, weights and output shapes.

One row per class, on the page of its family; ``SCHEMA`` joins them. Readers parse options and
weights by it, the builder and the reference never meet a value that did not pass through it. No
torch, no h5py.
"""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema import cells, operations
from keras2torch_birnn.schema.cells import cells_in_order
from keras2torch_birnn.schema.options import (
    ACTIVATION_OPTIONS,
    REQUIRED,
    BadOptionError,
    Option,
)
from keras2torch_birnn.schema.pages import Pages, for_ranks, names_for_ranks
from keras2torch_birnn.schema.recurrent import CELL_GATES, merged_output
from keras2torch_birnn.schema.row import Schema, ShapeError, normalized_axes

# Page -> the classes that its LAYERS describe, in the order of lists and tables; one with {} stands
# for those of one axis, two and three. A page is imported when a row of it is read.
_CLASSES = {
    "model": "InputLayer Sequential Functional",
    "recurrent": "LSTM GRU SimpleRNN Bidirectional RNN",
    "conv_lstm": "ConvLSTM{}D",
    "time_distributed": "TimeDistributed",
    "dense": "Dense EinsumDense",
    "embedding": "Embedding",
    "masking": "Masking",
    "activation": "Activation ReLU LeakyReLU ELU ThresholdedReLU Softmax PReLU",
    "dropout": (
        "Dropout SpatialDropout{}D Identity GaussianNoise GaussianDropout AlphaDropout "
        "ActivityRegularization"
    ),
    "normalization": (
        "BatchNormalization LayerNormalization GroupNormalization UnitNormalization "
        "RMSNormalization"
    ),
    "reshaping": "Flatten Reshape Permute RepeatVector",
    "resizing": "ZeroPadding{}D Cropping{}D UpSampling{}D Resizing",
    "pooling": "MaxPooling{}D AveragePooling{}D GlobalMaxPooling{}D GlobalAveragePooling{}D",
    "convolution": (
        "Conv{}D DepthwiseConv1D DepthwiseConv2D SeparableConv1D SeparableConv2D Conv{}DTranspose"
    ),
    "preprocessing": "Normalization Rescaling CategoryEncoding",
    "merging": "Add Multiply Average Maximum Minimum Subtract Concatenate Dot Merge",
    "attention": "Attention AdditiveAttention MultiHeadAttention",
    "augmentation": (
        "RandomFlip RandomRotation RandomZoom RandomTranslation RandomHeight RandomWidth "
        "RandomShear RandomPerspective RandomElasticTransform RandomContrast RandomBrightness "
        "RandomGrayscale RandomColorJitter RandomColorDegeneration RandomHue RandomSaturation "
        "RandomSharpness RandomPosterization RandomInvert RandomErasing RandomGaussianBlur "
        "RandAugment AugMix CutMix MixUp Solarization MaxNumBoundingBoxes"
    ),
}
CLASSES: Mapping[str, tuple[str, ...]] = {
    page: names_for_ranks(names) for page, names in _CLASSES.items()
}
# The page of each class; other packages have pages of the same names.
PAGES: Mapping[str, str] = {name: page for page, names in CLASSES.items() for name in names}
# Other names of classes in files.
ALIASES: Mapping[str, str] = {
    "Model": "Functional",
    "CuDNNLSTM": "LSTM",
    "CuDNNGRU": "GRU",
    "SyncBatchNormalization": "BatchNormalization",  # the same at inference
    **for_ranks("MaxPool{}D", "MaxPooling{}D".format),
    **for_ranks("AvgPool{}D", "AveragePooling{}D".format),
    **for_ranks("GlobalMaxPool{}D", "GlobalMaxPooling{}D".format),
    **for_ranks("GlobalAvgPool{}D", "GlobalAveragePooling{}D".format),
    **for_ranks("Convolution{}D", "Conv{}D".format),
    **for_ranks("Convolution{}DTranspose", "Conv{}DTranspose".format),
    "SeparableConvolution1D": "SeparableConv1D",
    "SeparableConvolution2D": "SeparableConv2D",
    "Deconvolution2D": "Conv2DTranspose",
    "Deconv2D": "Conv2DTranspose",
    "Deconvolution3D": "Conv3DTranspose",
    "Deconv3D": "Conv3DTranspose",
}
LAYERS: Mapping[str, Schema] = Pages(__name__, "LAYERS", PAGES)
OPS = operations.OPS
CELLS = cells.CELLS
SCHEMA: Mapping[str, Schema] = Pages(__name__, "LAYERS", PAGES, at_hand={**OPS, **CELLS})

CONV_LSTMS = CLASSES["conv_lstm"]
# Layers that hold a graph of layers.
WITH_GRAPH = CLASSES["model"][1:]
# What can be half of a Bidirectional.
RECURRENT: tuple[str, ...] = (*CELL_GATES, "RNN", *CONV_LSTMS)

CLASS_NAMES: Mapping[str, str] = {**{name: name for name in SCHEMA}, **ALIASES}

__all__ = [
    "ACTIVATION_OPTIONS",
    "ALIASES",
    "CELLS",
    "CELL_GATES",
    "CLASSES",
    "CLASS_NAMES",
    "CONV_LSTMS",
    "LAYERS",
    "OPS",
    "PAGES",
    "RECURRENT",
    "REQUIRED",
    "SCHEMA",
    "WITH_GRAPH",
    "BadOptionError",
    "Option",
    "ShapeError",
    "cells_in_order",
    "merged_output",
    "normalized_axes",
]
