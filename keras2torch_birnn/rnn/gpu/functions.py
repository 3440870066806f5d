"""Activations and their gradients as Triton functions.

Triton resolves the comparisons of ``name`` when it compiles; it knows no tables of functions. Names
and options are those of ``FUNCTION_OPTIONS``. exp is the only elementary function with a fast
version on a GPU; the others are made from it so that small arguments keep their digits.
"""

from __future__ import annotations

import triton.language as tl

from keras2torch_birnn.rnn.gpu.tiles import jit


@jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    """Compute 1 / (1 + exp(-x)), without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@jit
def tanh(x: tl.tensor) -> tl.tensor:
    """Below 0.625 by the rational function of Cephes, else by exp."""
    z = x * x
    above = (-0.964399179425052238628 * z - 99.2877231001918586564) * z - 1614.68768441708447952
    below = ((z + 112.811678491632931402) * z + 2235.48839060100448583) * z + 4844.06305325125486048
    small = x + x * z * (above / below)
    e = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.625, small, tl.where(x < 0, -large, large))


@jit
def expm1(x: tl.tensor) -> tl.tensor:
    """Compute exp(x) - 1."""
    t = tanh(0.5 * x)
    return tl.where(x < 0.5, 2.0 * t / (1.0 - tl.where(x < 0.5, t, 0.0)), tl.exp(x) - 1.0)


@jit
def log1p(e: tl.tensor) -> tl.tensor:
    """Compute log(1 + e) for 0 <= e <= 1, with the rounding error of 1 + e divided out."""
    u = 1.0 + e
    rounded = u - 1.0
    return tl.where(rounded == 0, e, tl.log(u) * (e / tl.where(rounded == 0, 1.0, rounded)))


@jit
def softplus(x: tl.tensor) -> tl.tensor:
    """Compute log(1 + exp(x))."""
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@jit
def normal_cdf(x: tl.tensor) -> tl.tensor:
    """Probability of a standard normal variable below x."""
    return 0.5 * (1.0 + tl.erf(x * 0.70710678118654752440))


@jit
def softmax(x: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Softmax over the second axis, of the elements inside."""
    e = tl.exp(x - tl.max(tl.where(inside, x, float("-inf")), axis=1)[:, None])
    e = tl.where(inside, e, 0.0)
    return e / tl.sum(e, axis=1)[:, None]


@jit
def activate(
    x: tl.tensor,
    inside: tl.tensor,
    name: tl.constexpr,
    first: tl.constexpr,
    second: tl.constexpr,
    third: tl.constexpr,
) -> tl.tensor:
    """Apply an activation to a tile (rows, units); inside: its elements that exist."""
    if name == "linear":
        y = x
    elif name == "sigmoid":
        y = sigmoid(x)
    elif name == "tanh":
        y = tanh(x)
    elif name == "hard_sigmoid_0.2":
        y = tl.minimum(tl.maximum(0.2 * x + 0.5, 0.0), 1.0)
    elif name == "hard_sigmoid_1/6":
        y = tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) / 6.0
    elif name == "relu":
        y = tl.where(x >= second, tl.minimum(x, third), first * (x - second))
    elif name == "relu6":
        y = tl.minimum(tl.maximum(x, 0.0), 6.0)
    elif name == "leaky_relu":
        y = tl.where(x > 0, x, first * x)
    elif name == "elu":
        y = tl.where(x > 0, x, first * expm1(x))
    elif name == "celu":
        y = tl.where(x > 0, x, first * expm1(x / first))
    elif name == "selu":
        y = 1.0507009873554804934 * tl.where(x > 0, x, 1.6732632423543772848 * expm1(x))
    elif name == "gelu":
        if first == 0.0:
            y = x * normal_cdf(x)
        else:
            y = 0.5 * x * (1.0 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)))
    elif name == "silu":
        y = x * sigmoid(x)
    elif name == "hard_silu":
        y = x * tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) / 6.0
    elif name == "mish":
        y = x * tanh(softplus(x))
    elif name == "log_sigmoid":
        y = -softplus(-x)
    elif name == "hard_tanh":
        y = tl.minimum(tl.maximum(x, -1.0), 1.0)
    elif name == "tanh_shrink":
        y = x - tanh(x)
    elif name == "softplus":
        y = softplus(x)
    elif name == "softsign":
        y = x / (1.0 + tl.abs(x))
    elif name == "exponential":
        y = tl.exp(x)
    elif name == "hard_shrink":
        y = tl.where(tl.abs(x) > first, x, 0.0)
    elif name == "soft_shrink":
        y = tl.where(x > first, x - first, tl.where(x < -first, x + first, 0.0))
    elif name == "squareplus":
        y = 0.5 * (x + tl.sqrt(x * x + first))
    elif name == "sparse_plus":
        y = tl.where(x <= -1, 0.0, tl.where(x < 1, 0.25 * (x + 1.0) * (x + 1.0), x))
    elif name == "sparse_sigmoid":
        y = tl.minimum(tl.maximum(0.5 * (x + 1.0), 0.0), 1.0)
    elif name == "softmax":
        y = softmax(x, inside)
    else:
        tl.static_assert(name == "log_softmax", "an activation without a kernel")
        shifted = x - tl.max(tl.where(inside, x, float("-inf")), axis=1)[:, None]
        y = shifted - tl.log(tl.sum(tl.where(inside, tl.exp(shifted), 0.0), axis=1))[:, None]
    return y


@jit
def pull_back(
    x: tl.tensor,
    d_y: tl.tensor,
    inside: tl.tensor,
    name: tl.constexpr,
    first: tl.constexpr,
    second: tl.constexpr,
    third: tl.constexpr,
) -> tl.tensor:
    """Return the gradient of x from that of ``activate(x)``; at kinks the one that torch takes."""
    if name == "linear":
        d_x = d_y
    elif name == "sigmoid":
        s = sigmoid(x)
        d_x = d_y * (s * (1.0 - s))
    elif name == "tanh":
        t = tanh(x)
        d_x = d_y * (1.0 - t * t)
    elif name == "hard_sigmoid_0.2":
        v = 0.2 * x + 0.5
        d_x = tl.where((v >= 0) & (v <= 1), 0.2 * d_y, 0.0)
    elif name == "hard_sigmoid_1/6":
        d_x = tl.where((x > -3) & (x < 3), d_y / 6.0, 0.0)
    elif name == "relu":
        # In pairs: older Triton takes no longer chains.
        if (first == 0.0 and second == 0.0) and third == float("inf"):
            d_x = tl.where(x > 0, d_y, 0.0)
        else:
            d_x = tl.where(x >= second, tl.where(x <= third, d_y, 0.0), first * d_y)
    elif name == "relu6":
        d_x = tl.where((x > 0) & (x < 6), d_y, 0.0)
    elif name == "leaky_relu":
        d_x = tl.where(x > 0, d_y, first * d_y)
    elif name == "elu":
        d_x = tl.where(x > 0, d_y, d_y * (first * tl.exp(tl.minimum(x, 0.0))))
    elif name == "celu":
        d_x = tl.where(x > 0, d_y, d_y * tl.exp(tl.where(x > 0, 0.0, x / first)))
    elif name == "selu":
        slope = 1.6732632423543772848 * tl.exp(tl.minimum(x, 0.0))
        d_x = 1.0507009873554804934 * tl.where(x > 0, d_y, d_y * slope)
    elif name == "gelu":
        if first == 0.0:
            density = 0.39894228040143267794 * tl.exp(-0.5 * x * x)
            d_x = d_y * (normal_cdf(x) + x * density)
        else:
            t = tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x))
            slope = 0.79788456080286535588 * (1.0 + 0.134145 * x * x)
            d_x = d_y * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
    elif name == "silu":
        s = sigmoid(x)
        d_x = d_y * (s * (1.0 + x * (1.0 - s)))
    elif name == "hard_silu":
        d_x = tl.where(x <= -3, 0.0, tl.where(x < 3, d_y * (x / 3.0 + 0.5), d_y))
    elif name == "mish":
        t = tanh(softplus(x))
        d_x = d_y * (t + x * sigmoid(x) * (1.0 - t * t))
    elif name == "log_sigmoid":
        d_x = d_y * sigmoid(-x)
    elif name == "hard_tanh":
        d_x = tl.where((x > -1) & (x < 1), d_y, 0.0)
    elif name == "tanh_shrink":
        t = tanh(x)
        d_x = d_y * (t * t)
    elif name == "softplus":
        d_x = d_y * sigmoid(x)
    elif name == "softsign":
        v = 1.0 + tl.abs(x)
        d_x = d_y / (v * v)
    elif name == "exponential":
        d_x = d_y * tl.exp(x)
    elif name == "hard_shrink" or name == "soft_shrink":
        d_x = tl.where(tl.abs(x) > first, d_y, 0.0)
    elif name == "squareplus":
        d_x = 0.5 * d_y * (1.0 + x / tl.sqrt(x * x + first))
    elif name == "sparse_plus":
        d_x = tl.where(x <= -1, 0.0, tl.where(x < 1, 0.5 * d_y * (x + 1.0), d_y))
    elif name == "sparse_sigmoid":
        v = 0.5 * (x + 1.0)
        d_x = tl.where((v >= 0) & (v <= 1), 0.5 * d_y, 0.0)
    elif name == "softmax":
        y = softmax(x, inside)
        d_x = y * (d_y - tl.sum(tl.where(inside, d_y * y, 0.0), axis=1)[:, None])
    else:
        tl.static_assert(name == "log_softmax", "an activation without a kernel")
        total = tl.sum(tl.where(inside, d_y, 0.0), axis=1)[:, None]
        d_x = d_y - softmax(x, inside) * total
    return d_x
