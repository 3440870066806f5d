"""Schema of Keras' layers: options, weights and output shapes.

One row per class, on the page of its family; ``SCHEMA`` joins them. Readers parse options and
weights by it, the builder and the reference never meet a value that did not pass through it. No
torch, no h5py.
"""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema import operations
from keras2torch_birnn.schema.options import (
    ACTIVATION_OPTIONS,
    REQUIRED,
    BadOptionError,
    Option,
)
from keras2torch_birnn.schema.recurrent import CELL_GATES, CELLS, cells_in_order, merged_output
from keras2torch_birnn.schema.row import (
    Pages,
    Schema,
    ShapeError,
    for_ranks,
    names_for_ranks,
    normalized_axes,
)

# Layers that act in training only, and Identity.
DROPOUT = names_for_ranks(
    "Dropout SpatialDropout{}D Identity GaussianNoise GaussianDropout AlphaDropout "
    "ActivityRegularization"
)
# Layers that change images at random, in training only.
AUGMENTATION = names_for_ranks(
    "RandomFlip RandomRotation RandomZoom RandomTranslation RandomHeight RandomWidth "
    "RandomShear RandomPerspective RandomElasticTransform RandomContrast RandomBrightness "
    "RandomGrayscale RandomColorJitter RandomColorDegeneration RandomHue RandomSaturation "
    "RandomSharpness RandomPosterization RandomInvert RandomErasing RandomGaussianBlur "
    "RandAugment AugMix CutMix MixUp Solarization MaxNumBoundingBoxes"
)
# Layers that give the same values another shape.
RESHAPED = ("Flatten", "Reshape", "Permute", "RepeatVector")
CONV_LSTMS = names_for_ranks("ConvLSTM{}D")
# Layers that hold a graph of layers.
WITH_GRAPH = ("Sequential", "Functional")
# Page -> the classes that its LAYERS describe, in the order of lists and tables; one with {} stands
# for those of one axis, two and three. A page is imported when a row of it is read.
_CLASSES = {
    "model": ("InputLayer", *WITH_GRAPH),
    "recurrent": "LSTM GRU SimpleRNN Bidirectional RNN TimeDistributed".split(),
    "core": (
        *"Dense EinsumDense Embedding Masking".split(),
        *"Activation ReLU LeakyReLU ELU ThresholdedReLU Softmax PReLU".split(),
        *DROPOUT,
    ),
    "normalization": (
        *"BatchNormalization LayerNormalization GroupNormalization".split(),
        *"UnitNormalization RMSNormalization".split(),
    ),
    "reshaping": (
        *RESHAPED,
        *names_for_ranks("ZeroPadding{}D Cropping{}D UpSampling{}D Resizing"),
        *names_for_ranks("MaxPooling{}D AveragePooling{}D"),
        *names_for_ranks("GlobalMaxPooling{}D GlobalAveragePooling{}D"),
    ),
    "convolution": (
        *names_for_ranks("Conv{}D DepthwiseConv1D DepthwiseConv2D"),
        *names_for_ranks("SeparableConv1D SeparableConv2D Conv{}DTranspose"),
        *CONV_LSTMS,
    ),
    "preprocessing": (*"Normalization Rescaling CategoryEncoding".split(), *AUGMENTATION),
    "merging": "Add Multiply Average Maximum Minimum Subtract Concatenate Dot Merge".split(),
    "attention": "Attention AdditiveAttention MultiHeadAttention".split(),
}
# The page of each class; other packages have pages of the same names.
PAGES: Mapping[str, str] = {name: page for page, names in _CLASSES.items() for name in names}
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
SCHEMA: Mapping[str, Schema] = Pages(__name__, "LAYERS", PAGES, at_hand={**OPS, **CELLS})

# What can be half of a Bidirectional.
RECURRENT: tuple[str, ...] = (*CELL_GATES, "RNN", *CONV_LSTMS)

CLASS_NAMES: Mapping[str, str] = {**{name: name for name in SCHEMA}, **ALIASES}

__all__ = [
    "ACTIVATION_OPTIONS",
    "ALIASES",
    "AUGMENTATION",
    "CELLS",
    "CELL_GATES",
    "CLASS_NAMES",
    "CONV_LSTMS",
    "DROPOUT",
    "LAYERS",
    "OPS",
    "PAGES",
    "RECURRENT",
    "REQUIRED",
    "RESHAPED",
    "SCHEMA",
    "WITH_GRAPH",
    "BadOptionError",
    "Option",
    "ShapeError",
    "cells_in_order",
    "merged_output",
    "normalized_axes",
]
