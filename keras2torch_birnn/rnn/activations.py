"""Keras' activations in torch. The explicit names of ``schema.ACTIVATIONS`` -> functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Activation: TypeAlias = Callable[[Tensor], Tensor]


def linear(x: Tensor) -> Tensor:
    """Return x."""
    return x


def hard_sigmoid_0_2(x: Tensor) -> Tensor:
    """Compute clip(0.2 x + 0.5, 0, 1): Keras 1, Keras 2 and tf.keras (``backend.hard_sigmoid``)."""
    return torch.clamp(0.2 * x + 0.5, 0.0, 1.0)


def hard_sigmoid_1_6(x: Tensor) -> Tensor:
    """Compute clip(x/6 + 0.5, 0, 1) as relu6(x + 3) / 6: Keras 3 (``activations.hard_sigmoid``).

    Torch's own function gives the same numbers, but has no second gradient, and its first one in
    float64 is 1/6 of float32.
    """
    return functional.relu6(x + 3.0) / 6.0


def relu(
    x: Tensor,
    negative_slope: float = 0.0,
    max_value: float | None = None,
    threshold: float = 0.0,
) -> Tensor:
    """Return x where x >= threshold (at most max_value), else slope * (x - threshold)."""
    if negative_slope == 0.0 and max_value is None and threshold == 0.0:
        return functional.relu(x)
    above = x if max_value is None else x.clamp(max=max_value)
    return torch.where(x >= threshold, above, negative_slope * (x - threshold))


def leaky_relu(x: Tensor, negative_slope: float = 0.2) -> Tensor:
    """Return x where x > 0, else negative_slope * x."""
    return functional.leaky_relu(x, negative_slope)


def gelu(x: Tensor, approximate: bool = False) -> Tensor:
    """Compute x * Phi(x), by erf unless ``approximate`` (tanh)."""
    return functional.gelu(x, approximate="tanh" if approximate else "none")


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Compute exp(x) over ``axis`` divided by its sum."""
    return torch.softmax(x, dim=axis)


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Logarithm of the softmax over ``axis``."""
    return torch.log_softmax(x, dim=axis)


def softplus(x: Tensor) -> Tensor:
    """Compute log(1 + exp(x)), exact for large x too (torch's own turns linear above 20)."""
    return torch.logaddexp(x, torch.zeros_like(x))


FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "linear": linear,
    "relu": relu,
    "relu6": functional.relu6,
    "leaky_relu": leaky_relu,
    "elu": functional.elu,
    "selu": torch.selu,
    "gelu": gelu,
    "silu": functional.silu,
    "hard_silu": functional.hardswish,
    "mish": functional.mish,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid_0.2": hard_sigmoid_0_2,
    "hard_sigmoid_1/6": hard_sigmoid_1_6,
    "log_sigmoid": functional.logsigmoid,
    "tanh": torch.tanh,
    "softplus": softplus,
    "softsign": functional.softsign,
    "exponential": torch.exp,
    "softmax": softmax,
    "log_softmax": log_softmax,
}


def activation(value: Any) -> Activation:
    """Return the function of an explicit activation: a name, or a dict with options."""
    if isinstance(value, str):
        return FUNCTIONS[value]
    options = {key: option for key, option in value.items() if key != "name"}
    return partial(FUNCTIONS[value["name"]], **options)
