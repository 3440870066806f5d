"""Outputs at masked steps in files of tf.keras 2.0 to 2.2, whose Keras versions overlap.

Measured on a CPU with TensorFlow 1.14, 2.0.4, 2.1.4 and 2.2.3: inside
``Bidirectional(return_sequences=True)`` the LSTM and GRU of TensorFlow 2.0 and 2.1 repeat the
previous output at masked steps where their options allow the cuDNN kernel (``could_use_cudnn`` in
``layers/recurrent_v2.py``); all other layers, and all layers of 1.14 and since 2.2, give zeros.
``keras_version`` is 2.2.4-tf in 1.14 to 2.0 and 2.3.0-tf in 2.1 and 2.2. The rest tells them
apart: 2.2 puts ``lstm_cell`` into the names of weights, and 1.x writes dtypes otherwise
(``dialects.is_tensorflow_1``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import replace

from keras2torch_birnn.readers.config.generations import has_mask
from keras2torch_birnn.readers.weights.slots import Key
from keras2torch_birnn.spec import Generation, LayerSpec

OVERLAPPING = ("2.2.4-tf", "2.3.0-tf")
_CELL = re.compile(r"(lstm|gru)_cell(_\d+)?")
# Options with which TensorFlow 2.0 and 2.1 take the cuDNN kernel.
_KERNEL: Mapping[str, object] = {
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "recurrent_dropout": 0.0,
    "unroll": False,
    "use_bias": True,
    "return_sequences": True,
}


def resolve_masked_steps(
    root: LayerSpec,
    paths: Mapping[Key, Mapping[str, str]],
    generation: Generation,
    of_tensorflow_1: Set[str],
) -> tuple[LayerSpec, list[str]]:
    """Set the outputs at masked steps, by Keras version and names of weights; return notes.

    ``of_tensorflow_1``: places of layers that compute as in TensorFlow 1.
    """
    if generation.version not in OVERLAPPING:
        return root, []
    repeating: list[bool] = []

    def apply(layer: LayerSpec, owner: Key, *, wrapped: bool) -> LayerSpec:
        halves = layer.class_name == "Bidirectional"
        layer = layer.map_inner(lambda key, inner: apply(inner, (*owner, key), wrapped=halves))
        if not wrapped or owner not in paths or not _may_use_kernel(layer):
            return layer
        if layer.place in of_tensorflow_1:  # zeros, and not ambiguous
            return layer
        repeating.append(not _has_cell(paths[owner]))
        rule = "previous_output" if repeating[-1] else "zeros"
        return replace(layer, semantics={**layer.semantics, "masked_output": rule})

    root = apply(root, (), wrapped=False)
    if not repeating or not has_mask(root):
        return root, []
    does = "repeat the previous output" if repeating[0] else "give zeros"
    writer = "2.0 and 2.1" if repeating[0] else "2.2"
    return root, [
        f"keras_version {generation.version} belongs to several TensorFlows: masked steps of "
        f"Bidirectional LSTM and GRU layers {does}, as TensorFlow {writer} does on a CPU, by the "
        "names of the weights"
    ]


def _may_use_kernel(layer: LayerSpec) -> bool:
    """Tell whether the options of a layer allow the cuDNN kernel."""
    return (
        layer.class_name in ("LSTM", "GRU")
        and all(layer.config[key] == value for key, value in _KERNEL.items())
        and layer.semantics["masked_output"] == "zeros"
        and layer.config.get("reset_after", True)
    )


def _has_cell(names: Mapping[str, str]) -> bool:
    """Tell whether the names of a layer's weights have a cell, as since TensorFlow 2.2."""
    segments = names.get("kernel", "").split("/")
    return len(segments) > 1 and _CELL.fullmatch(segments[-2]) is not None
