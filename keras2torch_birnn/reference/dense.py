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
    """Compute ``Dense.call``: activation(x W + b) over the last axis."""
    y = context.number(x) @ context.weight(layer, "kernel")
    if layer.config["use_bias"]:
        y = y + context.weight(layer, "bias")
    return activate(layer.config["activation"], y), mask


def einsum_dense(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``EinsumDense.call``: activation(einsum(equation, x, W) + b). The mask ends here."""
    y = np.einsum(layer.config["equation"], context.number(x), context.weight(layer, "kernel"))
    if layer.config["bias_axes"] is not None:
        y = y + context.weight(layer, "bias")
    return activate(layer.config["activation"], y), None


EQUATIONS: Mapping[str, Equation] = {
    "Dense": dense,
    "EinsumDense": einsum_dense,
}
