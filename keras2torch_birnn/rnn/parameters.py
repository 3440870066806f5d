"""From Keras' weights to torch's parameters, for one direction of a cell.

F features, H units, G gates; x W of Keras is x weight_ih^T of torch, so kernels are transposed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from keras2torch_birnn.schema.recurrent import GATES
from keras2torch_birnn.spec import Array, LayerSpec


def torch_parameters(layer: LayerSpec, suffix: str = "") -> dict[str, Array]:
    """Return one direction's parameters by torch's names: ``weight_ih_l0`` (G*H, F), ...

    ``suffix``: "_reverse" for the second direction of a bidirectional module.
    """
    return {f"{name}_l0{suffix}": array for name, array in convert_weights(layer).items()}


def convert_weights(layer: LayerSpec) -> dict[str, Array]:
    """Turn ``kernel`` (F, G H) -> ``weight_ih`` (G H, F), ``recurrent_kernel`` -> ``weight_hh``.

    ``bias`` (G H,) -> ``bias_ih``, (2, G H) -> ``bias_ih`` and ``bias_hh``; without the second,
    bias_hh stays zero.
    """
    order = GATES[layer.class_name].order
    weights = {name: reorder(array, order, axis=-1) for name, array in layer.weights.items()}
    out = {"weight_ih": weights["kernel"].T, "weight_hh": weights["recurrent_kernel"].T}
    if "bias" in weights:
        biases = weights["bias"] if weights["bias"].ndim == 2 else weights["bias"][np.newaxis]
        out |= zip(("bias_ih", "bias_hh"), biases, strict=False)
    return out


def reorder(array: Array, order: tuple[int, ...], axis: int) -> Array:
    """Exchange the blocks of an axis: block i of the result is block ``order[i]``."""
    if order == tuple(range(len(order))):
        return array
    blocks = np.split(array, len(order), axis=axis)
    return np.concatenate([blocks[gate] for gate in order], axis=axis)


def to_parameter(array: Array) -> nn.Parameter:
    """Make a parameter with the array's values, sharing its memory where possible.

    The arrays of a spec that was read from JSON are placeholders (all strides zero); their
    parameters take no memory either, until a state_dict is assigned.
    """
    if array.ndim == 0:
        return nn.Parameter(torch.tensor(array))
    if array.size and not any(array.strides):
        scalar = torch.from_numpy(np.zeros((), dtype=array.dtype))
        return nn.Parameter(scalar.expand(array.shape))
    if min(array.strides) < 0 or not array.flags.writeable:
        # NumPy calls a reversed axis of length 1 contiguous, torch refuses its stride. And a
        # placeholder of one value is contiguous, but read-only.
        array = array.copy()
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(array)))
