"""Keras' equations in plain NumPy: slow, obviously right, the yardstick of ``verify``.

Takes the ModelSpec that the readers make. Imports neither torch nor h5py and shares no line with
the torch side. Inference only: what Keras does in training alone is the identity here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from keras2torch_birnn.reference import (
    attention,
    hashing,
    layers,
    local,
    merging,
    models,
    operations,
    own_layers,
    placing,
    preprocessing,
    recurrent,
    windows,
)
from keras2torch_birnn.reference.context import Context, Equation, Scan
from keras2torch_birnn.spec import Array, Generation, LayerSpec, ModelSpec, Structure, leaves

EQUATIONS: Mapping[str, Equation] = {
    "InputLayer": layers.input_layer,
    "Sequential": models.model,
    "Functional": models.model,
    "TimeDistributed": models.time_distributed,
    "LSTM": recurrent.recurrent,
    "GRU": recurrent.recurrent,
    "SimpleRNN": recurrent.recurrent,
    "RNN": recurrent.recurrent,
    "ConvLSTM1D": recurrent.recurrent,
    "ConvLSTM2D": recurrent.recurrent,
    "ConvLSTM3D": recurrent.recurrent,
    "Bidirectional": recurrent.bidirectional,
    "Add": merging.folded(np.add),
    "Subtract": merging.folded(np.subtract),
    "Multiply": merging.multiply,
    "Average": merging.folded(np.add, lambda total, count: total / count),
    "Maximum": merging.extreme(np.maximum),
    "Minimum": merging.extreme(np.minimum),
    "Concatenate": merging.concatenate,
    "Dot": merging.dot,
    "Merge": merging.cosine,
    "Attention": attention.attention,
    "AdditiveAttention": attention.attention,
    "MultiHeadAttention": attention.heads,
    "GroupedQueryAttention": attention.heads,
    "Dense": layers.dense,
    "EinsumDense": layers.einsum_dense,
    "Highway": layers.highway,
    "MaxoutDense": layers.maxout,
    "Embedding": layers.embedding,
    "Masking": layers.masking,
    "Activation": layers.activation,
    "ReLU": layers.relu,
    "LeakyReLU": layers.activation_layer("leaky_relu"),
    "ELU": layers.activation_layer("elu"),
    "ThresholdedReLU": layers.thresholded_relu,
    "Softmax": layers.softmax,
    "PReLU": layers.prelu,
    "Dropout": layers.identity,
    "SpatialDropout1D": layers.identity,
    "SpatialDropout2D": layers.identity,
    "SpatialDropout3D": layers.identity,
    "Identity": layers.identity_layer,
    "GaussianNoise": layers.identity,
    "GaussianDropout": layers.identity,
    "AlphaDropout": layers.identity,
    "ActivityRegularization": layers.identity,
    "BatchNormalization": layers.batch_normalization,
    "LayerNormalization": layers.layer_normalization,
    "GroupNormalization": layers.group_normalization,
    "UnitNormalization": layers.unit_normalization,
    "RMSNormalization": layers.rms_normalization,
    "Normalization": preprocessing.normalization,
    "Rescaling": preprocessing.rescaling,
    "CategoryEncoding": preprocessing.category_encoding,
    "Discretization": preprocessing.discretization,
    "Hashing": hashing.hashing,
    "IntegerLookup": preprocessing.integer_lookup,
    **operations.EQUATIONS,
    "Flatten": layers.flatten,
    "Reshape": layers.reshape,
    "Permute": layers.permute,
    "RepeatVector": layers.repeat_vector,
    "ZeroPadding1D": placing.zero_padding,
    "ZeroPadding2D": placing.zero_padding,
    "ZeroPadding3D": placing.zero_padding,
    "Cropping1D": placing.cropping,
    "Cropping2D": placing.cropping,
    "Cropping3D": placing.cropping,
    "UpSampling1D": placing.up_sampling,
    "UpSampling2D": placing.up_sampling,
    "UpSampling3D": placing.up_sampling,
    "Conv1D": windows.convolution,
    "Conv2D": windows.convolution,
    "Conv3D": windows.convolution,
    "DepthwiseConv1D": windows.depthwise,
    "DepthwiseConv2D": windows.depthwise,
    "SeparableConv1D": windows.separable,
    "SeparableConv2D": windows.separable,
    "Conv1DTranspose": windows.transposed,
    "Conv2DTranspose": windows.transposed,
    "Conv3DTranspose": windows.transposed,
    "LocallyConnected1D": local.locally_connected,
    "LocallyConnected2D": local.locally_connected,
    "MaxPooling1D": windows.pooling(np.max),
    "MaxPooling2D": windows.pooling(np.max),
    "MaxPooling3D": windows.pooling(np.max),
    "AveragePooling1D": windows.pooling(np.mean),
    "AveragePooling2D": windows.pooling(np.mean),
    "AveragePooling3D": windows.pooling(np.mean),
    "GlobalMaxPooling1D": windows.global_max_pooling,
    "GlobalMaxPooling2D": windows.global_max_pooling,
    "GlobalMaxPooling3D": windows.global_max_pooling,
    "GlobalAveragePooling1D": windows.global_average_pooling,
    "GlobalAveragePooling2D": windows.global_average_pooling,
    "GlobalAveragePooling3D": windows.global_average_pooling,
}


@dataclass(frozen=True)
class Trace:
    """What one run gives.

    ``outputs``: the model's outputs, flat and in order. ``layers``: what every call gives, by the
    layer's name; ``name#1`` is its second call, ``outer/inner`` a layer inside a model,
    ``wrapper/model/inner`` one inside a TimeDistributed model (with the time axis of the wrapper).
    ``masks``: the same for masks. ``scans``: every direction of the recurrent layers
    (``bi/forward_layer``), if they were asked for.
    """

    outputs: tuple[Array, ...]
    layers: Mapping[str, Structure]
    masks: Mapping[str, Structure]
    scans: Mapping[str, Scan] = field(default_factory=dict)


def compute(
    model: ModelSpec,
    inputs: Sequence[Array],
    *,
    states: dict[str, tuple[Array, ...]] | None = None,
    dtype: npt.DTypeLike = np.float64,
    own: Equation = own_layers.by_plugin,
    scans: bool = False,
    nudge: Callable[[Array], Array] | None = None,
) -> Trace:
    """Run the model on inputs of shape (B, ...), in the order of ``model.input_layers()``.

    ``states`` holds what stateful layers carry from call to call, by place (``bi/forward_layer``),
    and is updated; an empty dict is the state after loading. None: nothing is carried. ``own``
    computes the layers of plugins. ``scans``: whether to keep those. ``nudge``:
    see ``Context``.

    Raises:
        ValueError: the inputs do not fit the model.
        IndexError: an id lies beyond its Embedding.
    """
    context = Context(
        generation=model.generation,
        dtype=dtype,
        equations=EQUATIONS,
        layers={},
        masks={},
        states=states,
        own=own,
        scans={} if scans else None,
        nudge=nudge,
    )
    with np.errstate(all="ignore"):
        outputs, _ = models.run(model.graph, inputs, [None] * len(inputs), context)
    return Trace(tuple(leaves(outputs)), context.layers, context.masks, context.scans or {})


def compute_recurrent(
    layer: LayerSpec,
    x: Array,
    mask: Array | None,
    start: tuple[Array, ...],
    generation: Generation,
    *,
    nudge: Callable[[Array], Array] | None = None,
) -> Trace:
    """Run one recurrent layer, or a Bidirectional, in float64.

    x: (B, T, ...), mask: (B, T) or None, start: the states of all directions, forward first.
    ``nudge``: see ``Context``. Scans are named ``""``, or ``forward_layer`` and ``backward_layer``.
    """
    context = Context(
        generation=generation,
        dtype=np.float64,
        equations=EQUATIONS,
        layers={},
        masks={},
        states=None,
        scans={},
        nudge=nudge,
    )
    with np.errstate(all="ignore"):
        output, _ = context.starting(start).apply(layer, x, mask)
    return Trace(tuple(leaves(output)), {}, {}, context.scans or {})
