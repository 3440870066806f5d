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


def hard_shrink(x: Tensor, threshold: float = 0.5) -> Tensor:
    """Return x where abs(x) > threshold, else zero, also for NaN (torch's own keeps that)."""
    return torch.where(x.abs() > threshold, x, 0.0)


def soft_shrink(x: Tensor, threshold: float = 0.5) -> Tensor:
    """Return x moved towards zero by threshold, zero within it and for NaN."""
    below = torch.where(x < -threshold, x + threshold, 0.0)
    return torch.where(x > threshold, x - threshold, below)


def squareplus(x: Tensor, b: float = 4.0) -> Tensor:
    """Compute (x + sqrt(x^2 + b)) / 2."""
    return (x + torch.sqrt(x * x + b)) / 2


def sparse_plus(x: Tensor) -> Tensor:
    """Compute 0 up to -1, (x + 1)^2 / 4 up to 1, then x."""
    inner = torch.where(x < 1, (x + 1) ** 2 / 4, x)
    return torch.where(x <= -1, torch.zeros_like(x), inner)


def sparse_sigmoid(x: Tensor) -> Tensor:
    """Compute clip((x + 1) / 2, 0, 1)."""
    return torch.clamp(0.5 * (x + 1), 0.0, 1.0)


def sparsemax(x: Tensor, axis: int = -1) -> Tensor:
    """Compute Keras 3's sparsemax: max(x - tau, 0) along ``axis``.

    Not the projection onto the simplex of Martins and Astudillo 2016: Keras sums the cumulative
    sums of all kept entries where the paper takes the last (Keras 3.15 ``backend/*/nn.py``).
    """
    z = x.movedim(axis, -1)
    ordered = z.sort(dim=-1, descending=True).values
    sums = ordered.cumsum(-1)
    count = torch.arange(1, z.shape[-1] + 1, device=x.device, dtype=x.dtype)
    kept = ordered - (sums - 1) / count > 0
    total = torch.where(kept, sums, 0.0).sum(dim=-1, keepdim=True)
    tau = (total - 1) / kept.sum(dim=-1, keepdim=True)
    return torch.relu(z - tau).movedim(-1, axis)


def glu(x: Tensor, axis: int = -1) -> Tensor:
    """First half of ``axis`` times the sigmoid of the second."""
    return functional.glu(x, axis)


FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "linear": linear,
    "relu": relu,
    "relu6": functional.relu6,
    "leaky_relu": leaky_relu,
    "elu": functional.elu,
    "celu": functional.celu,
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
    "hard_tanh": functional.hardtanh,
    "tanh_shrink": functional.tanhshrink,
    "softplus": softplus,
    "softsign": functional.softsign,
    "exponential": torch.exp,
    "hard_shrink": hard_shrink,
    "soft_shrink": soft_shrink,
    "squareplus": squareplus,
    "sparse_plus": sparse_plus,
    "sparse_sigmoid": sparse_sigmoid,
    "sparsemax": sparsemax,
    "glu": glu,
    "softmax": softmax,
    "log_softmax": log_softmax,
}

# The output is half as wide, so a recurrent cell cannot use it.
HALVING = frozenset({"glu"})


def activation(value: Any) -> Activation:
    """Return the function of an explicit activation: a name, or a dict with options."""
    if isinstance(value, str):
        return FUNCTIONS[value]
    options = {key: option for key, option in value.items() if key != "name"}
    return partial(FUNCTIONS[value["name"]], **options)
