"""Compile kernels for cards that are not here; run as a process of its own.

Prints one line of JSON for each: job, type, kernel, kind, registers, spilled and shared (bytes),
and whether it loads through a cache that does not see what was stored.

    python triton_compile_child.py JOB...

A job is CARD:steps, every kernel of a step, types in turn, or CARD:FORM:KIND:UNITS, those of a kind
that multiply, "fused" or "persistent", as they are compiled for 1 unit or a multiple of 16.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from types import MappingProxyType
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from keras2torch_birnn.rnn.gpu import (
    backward_kernels,
    forward_kernels,
    fused_kernels,
    persistent_kernels,
)
from keras2torch_birnn.rnn.gpu.launcher import TILINGS, find_tile
from keras2torch_birnn.rnn.gpu.step_cell import StepCell, StepFunction

# Triton 3.2, of torch 2.6, wants no constants in a signature, does not know sm_120, and links for
# AMD by the linker of an installed ROCm.
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
OLD = VERSION < (3, 3)
LEFT_OUT = ("sm_120", "gfx942") if OLD else ()
TARGETS: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "sm_75": (GPUTarget("cuda", 75, 32), ("fp32", "fp16")),
    "sm_80": (GPUTarget("cuda", 80, 32), ("fp32", "bf16")),
    "sm_90": (GPUTarget("cuda", 90, 32), ("bf16", "fp32")),
    "sm_120": (GPUTarget("cuda", 120, 32), ("fp32",)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), ("fp32",)),
}
ACTIVATION = {"activation": "relu", "a1": -0.3, "a2": 0.0, "a3": float("inf")}
GATE = {"gate": "hard_sigmoid_1/6", "g1": 0.0, "g2": 0.0, "g3": 0.0}
TILE = {"masked": True, "compute": tl.float32, "tile_rows": 2, "tile_units": 128}
FLAGS = {"keep": True, "has_bias_n": True, "has_d_out": True}
OPTIONS = ("num_warps", "num_stages")
KINDS = ("LSTM", "GRU", "GRU before", "SimpleRNN")
KERNELS = [
    *((forward_kernels.advance, kind) for kind in KINDS),
    *((backward_kernels.retreat, kind) for kind in KINDS),
    (forward_kernels.reset_state, ""),
    (backward_kernels.retreat_reset, ""),
]
MULTIPLYING: Mapping[str, Sequence[Any]] = {
    "fused": (fused_kernels.fused_forward, fused_kernels.fused_backward),
    "persistent": (persistent_kernels.run_forward, persistent_kernels.run_backward),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Newer Triton has two assemblers: that for the newest cards is the newer one.
ASSEMBLER = max(TOOLS.glob("ptxas*"), key=lambda file: len(file.name))


def compile_kernel(
    kernel: Any, kind: str, target: Any, dtype: str, own: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """Return what Triton makes of a kernel for a card."""
    given = {**ACTIVATION, **GATE, **TILE, **FLAGS, "kind": kind, **own}
    signature = {}
    for parameter in kernel.params:
        name = parameter.name
        if parameter.is_constexpr or (name == "units" and own.get(name) == 1):
            signature[name] = "constexpr"
        elif name in ("step", "time", "batch", "units"):
            signature[name] = "i32"
        else:
            signature[name] = "*i64" if name == "lengths" else f"*{dtype}"
    constants = {name: given[name] for name, kind in signature.items() if kind == "constexpr"}
    if OLD:
        signature = {name: kind for name, kind in signature.items() if name not in constants}
    options = {name: own[name] for name in OPTIONS if name in own}
    multiples = [
        number
        for number, (name, kind) in enumerate(signature.items())
        if own and (kind.startswith("*") or (name, kind) == ("units", "i32"))
    ]
    attributes = {(number,): [["tt.divisibility", 16]] for number in multiples}
    source = ASTSource(kernel, signature, constants, attributes or None)
    return triton.compile(source, target=target, options=options)


def measure(made: Any) -> tuple[int, int]:
    """Return the registers of a thread, and the bytes or registers that do not fit into them."""
    if "amdgcn" in made.asm:
        count = {
            key: int(value)
            for key, value in re.findall(r"\.(\w+_count):\s+(\d+)", made.asm["amdgcn"])
        }
        return count["vgpr_count"], count["vgpr_spill_count"] + count["sgpr_spill_count"]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "kernel.ptx"
        text.write_text(made.asm["ptx"])
        (code,) = re.findall(r"^\.target (\w+)", made.asm["ptx"], re.MULTILINE)
        done = subprocess.run(
            [ASSEMBLER, "-v", "--gpu-name", code, text, "-o", text.with_suffix(".cubin")],
            check=True,
            capture_output=True,
            text=True,
        )
    registers = re.findall(r"Used (\d+) registers", done.stderr)
    spilled = re.findall(r"(\d+) bytes spill", done.stderr)
    return max(map(int, registers)), sum(map(int, spilled))


def compile_all(card: str, form: Any, kind: str = "", units: str = "") -> Iterator[dict[str, Any]]:
    """Compile each kernel of a step for a type in turn, or those that multiply for the last."""
    target, dtypes = TARGETS[card]
    own: Mapping[str, Any] = {}
    chosen: Sequence[tuple[Any, str, bool]] = [(*each, False) for each in KERNELS]
    if form != "steps":
        cell = StepCell(kind, StepFunction(""), StepFunction(""), form)
        rows, columns = find_tile(cell, 1 << 30, int(units))
        own = {"tile_rows": rows, "tile_units": columns, "units": int(units), "gates": cell.gates}
        own, dtypes = {**own, **TILINGS[cell.form].options}, dtypes[-1:]
        halves = (False, True) if form == "fused" and cell.resets_before else (False,)
        chosen = [(kernel, kind, half) for kernel in MULTIPLYING[form] for half in halves]
    for (kernel, kind_, half), dtype in zip(chosen, cycle(dtypes), strict=False):
        constants = {**own, "of_reset": half} if own else own
        made = compile_kernel(kernel, kind_, target, dtype, constants)
        registers, spilled = measure(made)
        yield {
            "dtype": dtype,
            "kernel": kernel.fn.__name__,
            "kind": kind_,
            "registers": registers,
            "spilled": spilled,
            "shared": made.metadata.shared,
            "cached": "ld.global.nc" in made.asm.get("ptx", ""),
        }


if __name__ == "__main__":
    for job in sys.argv[1:]:
        for row in compile_all(*job.split(":")):
            print(json.dumps({"job": job, **row}))
