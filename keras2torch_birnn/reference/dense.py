"""Dense and EinsumDense.

Letters: B batch, T time, F features. Sources name class and method of Keras 2.15 and 3.15, which
agree unless said.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import Array, LayerSpec, Structure


def dense(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Dense.call``: activation(x W + b) over the last axis.

    ``Dense._int8_call`` (3.15): x is scaled to integers from -127 to 127, the largest of each row
    to 127, W holds integers already; the product is divided by both scales.
    """
    x, kernel = context.number(x), context.weight(layer, "kernel")
    if layer.semantics.get("quantized") is None:
        y = x @ kernel
    else:
        scale = context.weight(layer, "kernel_scale")
        if layer.semantics["quantized"] == "inputs and weights":
            to_whole = 127 / (np.max(np.abs(x), axis=-1, keepdims=True) + 1e-7)
            x, scale = np.clip(np.round(x * to_whole), -127, 127), scale * to_whole
        y = (x @ kernel) / scale
    if layer.config["use_bias"]:
        y = y + context.weight(layer, "bias")
    return activate(layer.config["activation"], y), mask


def einsum_dense(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``EinsumDense.call``: activation(einsum(equation, x, W) + b). The mask ends here.

    ``EinsumDense._int8_call`` (3.15): as ``Dense._int8_call``. The scale of x is the same along
    all axes that are summed, so it may be taken out of x again before the sum.
    """
    equation, x = layer.config["equation"], context.number(x)
    if layer.semantics.get("quantized") == "inputs and weights":
        given, _, out = equation.replace("->", ",").split(",")
        summed = tuple(i for i, letter in enumerate(given) if letter not in out)
        to_whole = 127 / (np.max(np.abs(x), axis=summed, keepdims=True) + 1e-7)
        x = np.clip(np.round(x * to_whole), -127, 127) / to_whole
    y = np.einsum(equation, x, context.weight(layer, "kernel"))
    if layer.semantics.get("quantized") is not None:
        y = y / context.weight(layer, "kernel_scale")
    if layer.config["bias_axes"] is not None:
        y = y + context.weight(layer, "bias")
    return activate(layer.config["activation"], y), None


EQUATIONS: Mapping[str, Equation] = {
    "Dense": dense,
    "EinsumDense": einsum_dense,
}
