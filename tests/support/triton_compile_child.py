"""Compile every kernel for a card of NVIDIA, without one; run as a process of its own."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from keras2torch_birnn.rnn.gpu import backward_kernels, forward_kernels

# Triton 3.2, of torch 2.6, wants no constants in a signature.
OLD = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3)
TARGET = GPUTarget("cuda", 80, 32)
ACTIVATION = {"activation": "relu", "a1": -0.3, "a2": 0.0, "a3": float("inf")}
GATE = {"gate": "hard_sigmoid_1/6", "g1": 0.0, "g2": 0.0, "g3": 0.0}
TILE = {"masked": True, "compute": tl.float32, "tile_rows": 2, "tile_units": 16}
FLAGS = {"keep": True, "has_bias_n": True, "has_d_out": True}
KINDS = ("LSTM", "GRU", "GRU before", "SimpleRNN")
KERNELS = [
    *((forward_kernels.advance, kind) for kind in KINDS),
    *((backward_kernels.retreat, kind) for kind in KINDS),
    (forward_kernels.reset_state, ""),
    (backward_kernels.retreat_reset, ""),
]


def compile_kernel(kernel: Any, kind: str) -> int:
    """Return the number of bytes for the card."""
    given = {**ACTIVATION, **GATE, **TILE, **FLAGS, "kind": kind}
    signature = {}
    for parameter in kernel.params:
        name = parameter.name
        if parameter.is_constexpr:
            signature[name] = "constexpr"
        elif name in ("step", "time", "batch", "units"):
            signature[name] = "i32"
        else:
            signature[name] = "*i64" if name == "lengths" else "*fp32"
    constants = {name: given[name] for name, kind in signature.items() if kind == "constexpr"}
    if OLD:
        signature = {name: kind for name, kind in signature.items() if name not in constants}
    source = ASTSource(kernel, signature, constants)
    return len(triton.compile(source, target=TARGET).asm["cubin"])


if __name__ == "__main__":
    for kernel, kind in KERNELS:
        print(kernel.fn.__name__, kind, compile_kernel(kernel, kind))
