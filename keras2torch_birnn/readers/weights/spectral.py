"""SpectralNormalization, read as the layer in it: at inference it is that layer.

In training Keras divides the layer's kernel by an estimate of its largest singular value and stores
the quotient, so a file holds the kernel that inference takes. ``vector_u``, the state of that
estimate, has no effect on it. A v3 store has the kernel twice, first with the wrapper, and Keras
loads that of the layer last.
Source: ``layers/normalization/spectral_normalization.py`` of tf.keras 2.13 and 2.15, tf_keras 2.21,
Keras 3.0, 3.5 and 3.15.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from keras2torch_birnn.errors import (
    UnsupportedLayerError,
    UnsupportedOptionError,
    invalid,
    printable,
)
from keras2torch_birnn.readers.config.custom_objects import is_custom_class
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.readers.config.policies import read_policy
from keras2torch_birnn.schema.dtype_flow import SPECTRAL
from keras2torch_birnn.spec import Generation, LayerSpec, Shape

WRAPPER = "SpectralNormalization"
VECTOR_U = "vector_u"
# The kernel is the first weight of each.
_LAYERS = tuple(
    "Dense EinsumDense Embedding Conv1D Conv2D Conv3D Conv1DTranspose Conv2DTranspose "
    "Conv3DTranspose DepthwiseConv1D DepthwiseConv2D".split()
)
_KEYS = frozenset("name trainable dtype layer power_iterations batch_input_shape".split())
_FIRST = (2, 13)  # tf.keras


def is_wrapper(entry: Mapping[str, Any], generation: Generation) -> bool:
    """Tell whether a layer's entry is Keras' own SpectralNormalization, which old Keras lacks."""
    has_it = generation.name == "keras3" or (
        generation.name == "tf.keras" and generation.numbers >= _FIRST
    )
    return has_it and entry.get("class_name") == WRAPPER and not is_custom_class(entry)


def unwrap_entry(
    entry: Mapping[str, Any], name: str, generation: Generation, place: str
) -> dict[str, Any]:
    """Return the entry of the wrapped layer with the wrapper's name and calls.

    Raises:
        InvalidModelFileError: there is no layer in it.
        UnsupportedLayerError: the layer is none of those that Keras can wrap, or is not supported.
        UnsupportedOptionError: the wrapper has options that Keras' does not have, or a dtype of its
            own in Keras 3, which then casts the output and so loses its mask.
    """
    config = entry["config"]
    inner = config.get("layer") if isinstance(config, Mapping) else None
    inside = inner.get("config") if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inside, Mapping):
        raise invalid("a wrapper without layer", place)
    if inner.get("class_name") not in _LAYERS or is_custom_class(inner):
        raise UnsupportedLayerError(
            f"{WRAPPER} over {printable(str(inner.get('class_name')))} is not supported",
            f"it takes {', '.join(_LAYERS)}; save that layer by itself, which computes the same",
            place=place,
        )
    iterations, unknown = config.get("power_iterations"), sorted(config.keys() - _KEYS)
    if type(iterations) is not int or iterations < 1 or unknown:
        shown = [f"power_iterations={printable(repr(iterations))}", *map(printable, unknown)]
        raise UnsupportedOptionError(
            f"{WRAPPER} with {', '.join(shown)} is not that of Keras",
            "save the layer in it by itself",
            place=place,
        )
    policies = [read_policy(one.get("dtype")) for one in (config, inside)]
    if generation.name == "keras3" and policies[0] != policies[1]:
        raise UnsupportedOptionError(
            f"{WRAPPER} of another dtype than the layer in it is not supported",
            "build both with one dtype, or save the layer in it by itself",
            place=place,
        )
    of_class = ("class_name", "module", "registered_name", "config")
    trainable = all(one.get("trainable", True) is not False for one in (config, inside))
    return {
        **{key: value for key, value in entry.items() if key not in of_class},
        **{key: inner[key] for key in of_class if key in inner},
        "config": {**inside, "name": name, "trainable": trainable},
    }


def mark(layer: LayerSpec, parsing: Parsing) -> LayerSpec:
    """Mark the layer as one that was wrapped, until its weights are read, and note it."""
    parsing.notes.append(
        f"{printable(layer.place)}: {WRAPPER} computes as at inference, with the kernel in the "
        "file; training here does not normalize it"
    )
    return replace(layer, semantics={**layer.semantics, SPECTRAL: True})


def is_spectral(layer: LayerSpec) -> bool:
    """Tell whether a layer whose weights are not read yet was wrapped."""
    return layer.semantics.get(SPECTRAL, False) is True


def vector_shapes(layer: LayerSpec, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return name -> shape of the wrapper's weight, none without one; shapes: of the layer's."""
    kernel = next(iter(shapes.values()), None)
    return {VECTOR_U: (1, kernel[-1])} if is_spectral(layer) and kernel else {}


def without_vector(layer: LayerSpec, weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the weights of the layer itself."""
    if not is_spectral(layer):
        return weights
    return {name: value for name, value in weights.items() if name != VECTOR_U}


def check_not_wrapped(root: LayerSpec) -> None:
    """Refuse to train as Keras does where Keras normalizes in training.

    Raises:
        UnsupportedLayerError: a layer was wrapped.
    """
    for layer in root.walk():
        if is_spectral(layer):
            raise UnsupportedLayerError(
                f"{WRAPPER} is converted for inference alone: Keras normalizes the kernel in every "
                "step of training, and stores it with the state of that",
                "train in Keras, or save the layer in it by itself before",
                place=layer.place,
            )
