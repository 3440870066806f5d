"""The kernel's reduced precision in NumPy, bit by bit: every operation in its order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from keras2torch_birnn.schema import CELL_GATES
from keras2torch_birnn.spec import Array

f4 = np.float32
# Input (R, K) and weights (N, K) -> their product (R, N) in float32, and the biases added.
Product: TypeAlias = Callable[[Array, Array, Array], Array]
Function: TypeAlias = Callable[[Array], Array]
Ratio: TypeAlias = Callable[[Array], tuple[Array, Array]]


def fused(a: Any, b: Any, c: Any) -> Array:
    """Return a b + c, rounded once. The product is exact in float64, the sum is rounded to odd."""
    a, b, c = (np.asarray(v, f4).astype("f8") for v in (a, b, c))
    product = a * b
    total = np.asarray(product + c)
    part = total - product
    error = (product - (total - part)) + (c - part)
    inexact = (error != 0) & np.isfinite(total) & (total.view("i8") % 2 == 0)
    toward = np.where(error > 0, np.inf, -np.inf)
    return np.where(inexact, np.nextafter(total, toward), total).astype(f4)


# ---- activations ---------------------------------------------------------------------------------


def split_exponential(x: Array) -> tuple[Array, Array]:
    """Return the rest and the power of two of e^x = (1 + rest) power."""
    bounded = np.clip(x, f4(-87), f4(87))
    n = fused(bounded, f4(1.44269504088896341), f4(12582912)) - f4(12582912)
    r = fused(n, f4(2.12194440e-4), fused(n, f4(-0.693359375), bounded))
    square = r * r
    p = fused(r, f4(1.9875691500e-4), f4(1.3981999507e-3))
    p = fused(p, square, fused(r, f4(8.3334519073e-3), f4(4.1665795894e-2)))
    p = fused(p, square, fused(r, f4(1.6666665459e-1), f4(5.0000001201e-1)))
    return fused(p, square, r), np.ldexp(f4(1), n.astype("i4"))


def exponential(x: Array) -> Array:
    rest, power = split_exponential(x)
    return (f4(1) + rest) * power


def sigmoid(x: Array) -> Array:
    rest, power = split_exponential(-x)
    return np.where(x < f4(-87), f4(0), f4(1) / fused(rest, power, f4(1) + power))


def tanh(x: Array) -> Array:
    rest, power = split_exponential(x * f4(2))
    m = fused(rest, power, power - f4(1))
    return m / (m + f4(2))


def elu(x: Array, alpha: float = 1.0) -> Array:
    series: Any = f4(1 / 5040)
    for divisor in (720, 120, 24, 6, 2):
        series = fused(series, x, f4(1) / f4(divisor))
    series = fused(series, x * x, x)
    negative = np.where(x > f4(-0.5), series, exponential(x) - f4(1))
    return np.where(x > 0, x, negative * f4(alpha))


def hard_sigmoid(x: Array) -> Array:
    return np.clip(x + f4(3), f4(0), f4(6)) * (f4(1) / f4(6))


def split_power(x: Array, scale: float) -> tuple[Array, Array]:
    """Return the rest and the power of two of 2^(scale x) = (1 + rest) power."""
    step = f4(scale)
    limit = f4(42) / abs(step)
    bounded = np.clip(x, -limit, limit)
    n = fused(bounded, step, f4(12582912)) - f4(12582912)
    r = fused(bounded, step, -n)
    p = fused(r, f4(9.61811002e-3), f4(5.58372885e-2))
    p = fused(fused(p, r, f4(2.40232527e-1)), r, f4(6.93136871e-1))
    return p * r, np.ldexp(f4(1), n.astype("i4"))


def sigmoid_ratio(x: Array) -> tuple[Array, Array]:
    rest, power = split_power(x, -1.44269504)
    return np.ones_like(x), fused(rest, power, f4(1) + power)


def tanh_ratio(x: Array) -> tuple[Array, Array]:
    rest, power = split_power(x, 2.88539008)
    m = fused(rest, power, power - f4(1))
    return m, m + f4(2)


FUNCTIONS: Mapping[str, Function] = {
    "linear": lambda x: x,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "hard_sigmoid_0.2": lambda x: np.clip(fused(x, f4(0.2), f4(0.5)), f4(0), f4(1)),
    "hard_sigmoid_1/6": hard_sigmoid,
    "relu": lambda x: np.maximum(x, f4(0)),
    "relu6": lambda x: np.clip(x, f4(0), f4(6)),
    "leaky_relu": lambda x: np.where(x > 0, x, x * f4(0.2)),
    "elu": elu,
    "selu": lambda x: elu(x, 1.67326324235437728) * f4(1.05070098735548049),
    "softsign": lambda x: x / (f4(1) + np.abs(x)),
    "silu": lambda x: x * sigmoid(x),
    "hard_silu": lambda x: x * hard_sigmoid(x),
    "hard_tanh": lambda x: np.clip(x, f4(-1), f4(1)),
}


# Those that a cell divides by only after it multiplied: numerator and denominator.
RATIOS: Mapping[str, Ratio] = {"tanh": tanh_ratio, "sigmoid": sigmoid_ratio}


def ratio_of(name: str) -> Ratio:
    """Return a function's numerator and denominator, 1 where it has none."""
    return RATIOS.get(name) or (lambda x: (FUNCTIONS[name](x), np.ones_like(x)))


# ---- products ------------------------------------------------------------------------------------


def to_bfloat16(values: Array) -> Array:
    """Round to 8 bits of significand, ties to even; numbers below 2^-54 become zero."""
    bits = np.ascontiguousarray(values, f4).view("u4").astype("u8")
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype("u4").view(f4)
    return np.where(np.abs(rounded) < 2.0**-54, f4(0), rounded)


def bfloat16_product(values: Array, weights: Array, bias: Array) -> Array:
    """Add two products a step, that of the second number first, as vdpbf16ps does."""
    a, w = to_bfloat16(values), to_bfloat16(weights)
    if a.shape[1] % 2:
        a, w = (np.pad(m, ((0, 0), (0, 1))) for m in (a, w))
    total = np.zeros((len(a), len(w)), f4)
    for k in range(0, a.shape[1], 2):
        total = total + a[:, None, k + 1] * w[None, :, k + 1]
        total = total + a[:, None, k] * w[None, :, k]
    return total + bias


def bfloat16_tile_product(values: Array, weights: Array, bias: Array) -> Array:
    """Add to the bias 32 terms at a time, even and odd ones apart, as tdpbf16ps does."""
    a, w = to_bfloat16(values), to_bfloat16(weights)
    missing = -a.shape[1] % 32
    a, w = (np.pad(m, ((0, 0), (0, missing))) for m in (a, w))
    total = np.broadcast_to(bias, (len(a), len(w)))
    for tile in range(0, a.shape[1], 32):
        apart = [np.zeros_like(total), np.zeros_like(total)]
        for k in range(tile, tile + 32):
            # Exact in float32, so this is a fused multiply-add.
            apart[k % 2] = apart[k % 2] + a[:, None, k] * w[None, :, k]
        total = total + (apart[0] + apart[1])
    return total


def to_int8(values: Array) -> tuple[Array, Array]:
    """Return integers (R, K) and the scale of each row (R, 1)."""
    largest = np.abs(values).max(axis=1, keepdims=True)
    zero = largest < f4(1e-30)
    divisor = np.where(zero, f4(1), largest)
    whole = np.rint(values * np.where(zero, f4(0), f4(127) / divisor)).astype("i8")
    return whole, np.where(zero, f4(0), largest / f4(127))


def int8_product(values: Array, weights: Array, bias: Array) -> Array:
    (a, a_scale), (w, w_scale) = to_int8(values), to_int8(weights)
    return fused((a @ w.T).astype(f4) * a_scale, w_scale.T, bias)


PRODUCTS: Mapping[str, Product] = {"bfloat16": bfloat16_product, "int8": int8_product}


def product_of(precision: str, instruction_set: str) -> Product:
    """Return the product of a kernel: AMX has an order of its own for bfloat16."""
    if precision == "bfloat16" and instruction_set.endswith("AMX"):
        return bfloat16_tile_product
    return PRODUCTS[precision]


# ---- cells ---------------------------------------------------------------------------------------


def mix(z: tuple[Array, Array], h: Array, n: tuple[Array, Array]) -> Array:
    """Return (1 - z) n + z h."""
    added = (z[1] - z[0]) * n[0]
    return fused(z[0] * h, n[1], added) / (z[1] * n[1])


def run_direction(
    cell: str,
    product: Product,
    act: Ratio,
    gate: Ratio,
    weights: Sequence[Array],
    x: Array,
    lengths: Array,
    start: Sequence[Array],
    *,
    backward: bool,
) -> tuple[Array, list[Array]]:
    """Return outputs (B, T, H) in the order of time, and the final states.

    weights: torch's four. start: h (B, H), and an LSTM's c.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    units, gates = weight_hh.shape[1], CELL_GATES[cell.split()[0]]
    states = [s.copy() for s in start]
    out = np.zeros((*x.shape[:2], units), f4)
    part = partial(np.split, indices_or_sections=gates, axis=1)
    for step in range(x.shape[1]):
        rows = np.flatnonzero(lengths > step)
        times = lengths[rows] - 1 - step if backward else np.full(len(rows), step)
        inputs = part(product(x[rows, times], weight_ih, bias_ih))
        h = states[0][rows]
        if cell == "GRU before":
            two = 2 * units
            sums = np.split(product(h, weight_hh[:two], bias_hh[:two]), 2, axis=1)
            reset, z = (gate(i + s) for i, s in zip(inputs[:2], sums, strict=True))
            read = reset[0] * h / reset[1]
            n = act(inputs[2] + product(read, weight_hh[two:], bias_hh[two:]))
            new = mix(z, h, n)
        else:
            sums = part(product(h, weight_hh, bias_hh))
            if cell == "LSTM":
                i, forget, o = (gate(inputs[k] + sums[k]) for k in (0, 1, 3))
                g = act(inputs[2] + sums[2])
                below = i[1] * g[1]
                c = fused(forget[0] * states[1][rows], below, i[0] * g[0] * forget[1])
                states[1][rows] = c = c / (below * forget[1])
                of_c = act(c)
                new = o[0] * of_c[0] / (o[1] * of_c[1])
            elif cell == "GRU":
                reset, z = (gate(inputs[k] + sums[k]) for k in (0, 1))
                n = act(reset[0] * sums[2] / reset[1] + inputs[2])
                new = mix(z, h, n)
            else:
                above, under = act(inputs[0] + sums[0])
                new = above / under
        states[0][rows] = new
        out[rows, times] = new
    return out, states
