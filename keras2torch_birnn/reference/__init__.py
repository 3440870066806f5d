"""Keras' equations in plain NumPy: slow, obviously right, the yardstick of ``verify``.

Takes the ModelSpec that the readers make. Imports neither torch nor h5py and shares no line with
the torch side. Inference only: what Keras does in training alone is the identity here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keras2torch_birnn.reference import layers, models, recurrent, windows
from keras2torch_birnn.reference.context import Context, Equation
from keras2torch_birnn.spec import Array, ModelSpec, Structure, leaves

EQUATIONS: Mapping[str, Equation] = {
    "InputLayer": layers.input_layer,
    "Sequential": models.model,
    "Functional": models.model,
    "TimeDistributed": models.time_distributed,
    "LSTM": recurrent.recurrent,
    "GRU": recurrent.recurrent,
    "SimpleRNN": recurrent.recurrent,
    "Bidirectional": recurrent.bidirectional,
    "Dense": layers.dense,
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
    "GaussianNoise": layers.identity,
    "GaussianDropout": layers.identity,
    "AlphaDropout": layers.identity,
    "ActivityRegularization": layers.identity,
    "BatchNormalization": layers.batch_normalization,
    "LayerNormalization": layers.layer_normalization,
    "ops.NotEqual": layers.not_equal,
    "ops.Any": layers.any_true,
    "Flatten": layers.flatten,
    "Reshape": layers.reshape,
    "Permute": layers.permute,
    "RepeatVector": layers.repeat_vector,
    "Conv1D": windows.conv1d,
    "MaxPooling1D": windows.pooling(np.max),
    "AveragePooling1D": windows.pooling(np.mean),
    "GlobalMaxPooling1D": windows.global_max_pooling,
    "GlobalAveragePooling1D": windows.global_average_pooling,
}


@dataclass(frozen=True)
class Trace:
    """What one run gives.

    ``outputs``: the model's outputs, flat and in order. ``layers``: what every call gives, by the
    layer's name; ``name#1`` is its second call, ``outer/inner`` a layer inside a model or inside a
    TimeDistributed model (there with the time axis of the wrapper). ``masks``: the same for masks.
    """

    outputs: tuple[Array, ...]
    layers: Mapping[str, Structure]
    masks: Mapping[str, Structure]


def compute(
    model: ModelSpec,
    inputs: Sequence[Array],
    *,
    states: dict[str, tuple[Array, ...]] | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> Trace:
    """Run the model on inputs of shape (B, ...), in the order of ``model.input_layers()``.

    ``states`` holds what stateful layers carry from call to call, by place (``bi/forward_layer``),
    and is updated; an empty dict is the state after loading. None: nothing is carried.

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
    )
    with np.errstate(all="ignore"):
        outputs, _ = models.run(model.graph, inputs, [None] * len(inputs), context)
    return Trace(tuple(leaves(outputs)), context.layers, context.masks)
