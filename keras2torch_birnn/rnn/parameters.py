"""From Keras' weights to torch's parameters: one function per cell, for one direction.

x W of Keras is x weight_ih^T of torch, so every kernel is transposed. Shapes: F input, H units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from keras2torch_birnn.spec import Array, LayerSpec


def lstm(layer: LayerSpec) -> dict[str, Array]:
    """Turn Keras' i, f, c, o into torch's i, f, g, o: the same order. bias_hh stays zero."""
    return _plain(layer)


def gru(layer: LayerSpec) -> dict[str, Array]:
    """Turn Keras' z, r, h into torch's r, z, n. Rows of bias (2, 3H): input, recurrent."""
    weights = {name: _reset_first(array) for name, array in layer.weights.items()}
    out = {"weight_ih": weights["kernel"].T, "weight_hh": weights["recurrent_kernel"].T}
    if "bias" in weights:
        bias = weights["bias"]
        if layer.config["reset_after"]:
            out["bias_ih"], out["bias_hh"] = bias[0], bias[1]
        else:
            out["bias_ih"] = bias
    return out


def simple_rnn(layer: LayerSpec) -> dict[str, Array]:
    """Convert the weights of a SimpleRNN: one gate, one bias; bias_hh stays zero."""
    return _plain(layer)


def _plain(layer: LayerSpec) -> dict[str, Array]:
    weights = layer.weights
    out = {"weight_ih": weights["kernel"].T, "weight_hh": weights["recurrent_kernel"].T}
    if "bias" in weights:
        out["bias_ih"] = weights["bias"]
    return out


def _reset_first(array: Array) -> Array:
    z, r, h = np.split(array, 3, axis=-1)
    return np.concatenate((r, z, h), axis=-1)


CROSSING: Mapping[str, Callable[[LayerSpec], dict[str, Array]]] = {
    "LSTM": lstm,
    "GRU": gru,
    "SimpleRNN": simple_rnn,
}


def torch_parameters(layer: LayerSpec, suffix: str = "") -> dict[str, Array]:
    """Return one direction's parameters by torch's names: ``weight_ih_l0`` (G*H, F), ...

    ``suffix``: "_reverse" for the second direction of a bidirectional module.
    """
    return {
        f"{name}_l0{suffix}": array for name, array in CROSSING[layer.class_name](layer).items()
    }
