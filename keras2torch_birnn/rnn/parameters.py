"""Where Keras' words become torch's: one function per cell, weights of one direction.

x W of Keras is x weight_ih^T of torch, so every kernel is transposed. Shapes: F input, H units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from keras2torch_birnn.lazy_array import LazyArray
from keras2torch_birnn.spec import Array, LayerSpec


def lstm(layer: LayerSpec) -> dict[str, Array]:
    """Keras i, f, c, o is torch's i, f, g, o: same order. One bias; bias_hh stays zero."""
    return _plain(layer)


def gru(layer: LayerSpec) -> dict[str, Array]:
    """Keras z, r, h becomes torch's r, z, n. Rows of bias (2, 3H): input, recurrent."""
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
    """One gate, one bias; bias_hh stays zero."""
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
    """One direction's parameters by torch's names: ``weight_ih_l0`` (G*H, F), ...

    ``suffix``: "_reverse" for the second direction of a bidirectional module.
    """
    return {
        f"{name}_l0{suffix}": array for name, array in CROSSING[layer.class_name](layer).items()
    }


_DEFERRED = "deferred"


def parameter(array: Array) -> nn.Parameter:
    """A parameter with the array's values, sharing its memory where it can.

    The arrays of a spec that was read from JSON are placeholders (all strides zero); their
    parameters take no memory either, until a state_dict is assigned. Nor do those of arrays that
    are still in the file, until ``fill`` reads them.
    """
    if isinstance(array, LazyArray):
        made = parameter(np.broadcast_to(np.zeros((), array.dtype), array.shape))
        setattr(made, _DEFERRED, array)
        return made
    if array.ndim == 0:
        return nn.Parameter(torch.tensor(array))
    if array.size and not any(array.strides):
        scalar = torch.from_numpy(np.zeros((), dtype=array.dtype))
        return nn.Parameter(scalar.expand(array.shape))
    if (
        min(array.strides) < 0
    ):  # turned round; NumPy calls that contiguous where an axis has length 1
        array = array.copy()
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(array)))


def deferred_values(tensor: torch.Tensor) -> LazyArray | None:
    """What a parameter will hold, where that is still in the file."""
    found = getattr(tensor, _DEFERRED, None)
    return found if isinstance(found, LazyArray) else None


def fill(module: nn.Module) -> None:
    """Read what is still in the file, one parameter after the other."""
    for one in module.parameters():
        source = deferred_values(one)
        if source is not None:
            one.data = torch.from_numpy(source.read())
            delattr(one, _DEFERRED)
