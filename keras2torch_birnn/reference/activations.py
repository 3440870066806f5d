"""Keras' activation functions in NumPy, written so that no finite input overflows.

Sources: ``keras/activations.py`` and ``keras/backend`` of Keras 2.2.4 and 2.15;
``keras/src/activations`` and ``keras/src/backend/numpy/nn.py`` of Keras 3.15.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras2torch_birnn.schema.options import ACTIVATIONS
from keras2torch_birnn.spec import Array

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


def erf(x: Array) -> Array:
    """Compute the error function, value by value."""
    return np.array([math.erf(value) for value in x.ravel()]).reshape(x.shape)


def linear(x: Array) -> Array:
    """Return the input."""
    return x


def relu(
    x: Array, negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0
) -> Array:
    """Return x above the threshold, at most max_value; negative_slope (x - threshold) below it.

    ``keras.backend.relu`` (2.15), ``keras.activations.relu`` (3.15): max_value also clips at 0.
    """
    above = np.where(x <= threshold, 0, x)  # NaN stays
    above = above if max_value is None else np.clip(above, 0, max_value)
    if negative_slope == 0:  # 0 times infinity is NaN
        return above
    return above - negative_slope * np.maximum(threshold - x, 0)


def relu6(x: Array) -> Array:
    """Compute min(max(x, 0), 6)."""
    return np.clip(x, 0, 6)


def leaky_relu(x: Array, negative_slope: float = 0.2) -> Array:
    """Return x where x > 0, else negative_slope x; the default is that of the function."""
    return np.where(x > 0, x, negative_slope * x)


def elu(x: Array, alpha: float = 1.0) -> Array:
    """Return x where x > 0, else alpha (exp(x) - 1)."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def selu(x: Array) -> Array:
    """Compute scale elu(x, alpha)."""
    return SELU_SCALE * elu(x, SELU_ALPHA)


def sigmoid(x: Array) -> Array:
    """Compute 1 / (1 + exp(-x))."""
    small = np.exp(-np.abs(x))
    y: Array = np.where(x >= 0, 1, small) / (1 + small)
    return y


def hard_sigmoid_02(x: Array) -> Array:
    """Compute clip(0.2 x + 0.5, 0, 1): ``keras.backend.hard_sigmoid``, Keras 1 to 2.15."""
    return np.clip(0.2 * x + 0.5, 0, 1)


def hard_sigmoid_16(x: Array) -> Array:
    """Compute clip(x / 6 + 0.5, 0, 1): ``keras.ops.hard_sigmoid``, Keras 3."""
    return np.clip(x / 6 + 0.5, 0, 1)


def hard_silu(x: Array) -> Array:
    """Compute x clip(x / 6 + 0.5, 0, 1): Keras 3."""
    return x * hard_sigmoid_16(x)


def silu(x: Array) -> Array:
    """Compute x sigmoid(x); also called swish."""
    return x * sigmoid(x)


def tanh(x: Array) -> Array:
    """Compute tanh(x)."""
    return np.tanh(x)


def softplus(x: Array) -> Array:
    """Compute log(exp(x) + 1)."""
    return np.logaddexp(x, 0)


def softsign(x: Array) -> Array:
    """Compute x / (1 + |x|)."""
    y: Array = x / (1 + np.abs(x))
    return y


def log_sigmoid(x: Array) -> Array:
    """Compute log(sigmoid(x))."""
    return -np.logaddexp(-x, 0)


def mish(x: Array) -> Array:
    """Compute x tanh(softplus(x))."""
    y: Array = x * np.tanh(softplus(x))
    return y


def exponential(x: Array) -> Array:
    """Compute exp(x)."""
    return np.exp(x)


def gelu(x: Array, approximate: bool = False) -> Array:
    """Compute x / 2 (1 + erf(x / sqrt 2)), or its tanh approximation."""
    approximation = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    y: Array = x / 2 * (1 + (approximation if approximate else erf(x / math.sqrt(2))))
    return y


def log_softmax(x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """Compute x - log(sum(exp(x))) along the axis, or along several together."""
    x = x - x.max(axis=axis, keepdims=True)
    y: Array = x - np.log(np.exp(x).sum(axis=axis, keepdims=True))
    return y


def softmax(x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """Compute exp(x) / sum(exp(x)) along the axis, or along several together."""
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    y: Array = e / e.sum(axis=axis, keepdims=True)
    return y


# A function has the name of its activation, without what no name in Python can hold.
FUNCTIONS: Mapping[str, Callable[..., Array]] = {
    name: globals()[name.replace(".", "").replace("/", "")] for name in ACTIVATIONS.values()
}


def activate(activation: Any, x: Array) -> Array:
    """Apply an activation as a spec holds it: a name, or ``{"name": ..., option: value}``."""
    if isinstance(activation, str):
        return FUNCTIONS[activation](x).astype(x.dtype)
    options = {key: value for key, value in activation.items() if key != "name"}
    return FUNCTIONS[activation["name"]](x, **options).astype(x.dtype)
