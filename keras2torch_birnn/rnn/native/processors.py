"""Table of the instruction sets that the kernel has code for, and how its sources are compiled.

It imports nothing of the package: ``setup.py`` runs this file before there is one. ``processors.h``
is made from it (``python tools/write_docs.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

# Registers of CPUID whose bits tell of instructions: leaf, its part, register.
REGISTERS = ("1.0 ecx", "7.0 ebx", "7.0 ecx", "7.0 edx", "7.1 eax")

_Bits = Mapping[str, Sequence[int]]


class InstructionSet(NamedTuple):
    """An instruction set, and what is compiled for it.

    name: as messages have it. file: the end of the names of its sources and kernels. kernels: for
    each precision the number of its kernel's bit. cpuid: bits in ``REGISTERS``. xcr0: bits of the
    registers that the system keeps for a process. flags: of x86-64 compilers; optional: flags that
    compilers since GCC 10 or 11 know, without which the file is compiled to an empty table.
    """

    name: str
    file: str
    kernels: Mapping[str, int]
    cpuid: _Bits = MappingProxyType({})
    xcr0: Sequence[int] = ()
    flags: Sequence[str] = ()
    optional: Sequence[str] = ()

    def files(self) -> Iterator[str]:
        """Yield the names of its sources."""
        if "float32" in self.kernels:
            yield f"isa_{self.file}.cpp"
        if self.kernels.keys() - {"float32"}:
            yield f"reduced_{self.file}.cpp"


# FMA, and that the system says in XCR0 which registers it keeps.
_AVX2: _Bits = {"1.0 ecx": (12, 27), "7.0 ebx": (5,)}
_AVX512: _Bits = {**_AVX2, "7.0 ebx": (5, 16, 17, 30, 31)}  # F, DQ, BW, VL
_YMM, _ZMM, _TILES = (1, 2), (1, 2, 5, 6, 7), (1, 2, 5, 6, 7, 17, 18)
_AVX2_FLAGS = ("-mavx2", "-mfma")
_AVX512_FLAGS = (
    *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"),
    "-mprefer-vector-width=512",
)

# Best first.
INSTRUCTION_SETS = (
    InstructionSet(
        "AMX",
        "amx",
        {"bfloat16": 6, "int8": 7},
        # Tiles, of bfloat16 and int8; by vectors, VNNI and bfloat16.
        {**_AVX512, "7.0 ecx": (11,), "7.0 edx": (22, 24, 25), "7.1 eax": (5,)},
        _TILES,
        _AVX512_FLAGS,
        ("-mamx-tile", "-mamx-bf16", "-mamx-int8", "-mavx512vnni", "-mavx512bf16"),
    ),
    InstructionSet(
        "AVX512-BF16",
        "avx512bf16",
        {"bfloat16": 3},
        {**_AVX512, "7.1 eax": (5,)},
        _ZMM,
        _AVX512_FLAGS,
        ("-mavx512bf16",),
    ),
    InstructionSet(
        "AVX512-VNNI",
        "avx512vnni",
        {"int8": 5},
        {**_AVX512, "7.0 ecx": (11,)},
        _ZMM,
        _AVX512_FLAGS,
        ("-mavx512vnni",),
    ),
    InstructionSet("AVX-512", "avx512", {"float32": 2}, _AVX512, _ZMM, _AVX512_FLAGS),
    InstructionSet(
        "AVX-VNNI",
        "avxvnni",
        {"int8": 4},
        {**_AVX2, "7.1 eax": (4,)},
        _YMM,
        _AVX2_FLAGS,
        ("-mavxvnni",),
    ),
    InstructionSet("AVX2", "avx2", {"float32": 1}, _AVX2, _YMM, _AVX2_FLAGS),
    InstructionSet("plain", "plain", {"float32": 0}),
)

# -O2 -g0 -fno-wrapv: with Python's own -O3 -g -fwrapv, GCC takes minutes over the unrolled products
# and makes nothing faster.
# -Werror=switch: a number of codes.h that a switch lacks would end the program that meets it.
COMMON = [
    *"-std=c++17 -O2 -g0 -fno-wrapv -fPIC -fvisibility=hidden -pthread -Wall -Wextra".split(),
    "-Werror=switch",
]

# These files use a part of the headers that they share with float32's.
REDUCED_FLAGS = ["-Wno-unused-function"]


def kernels_of(precision: str) -> Mapping[str, int]:
    """Return the bit of each instruction set's kernel for a precision, best first."""
    return {
        one.name: 1 << one.kernels[precision]
        for one in INSTRUCTION_SETS
        if precision in one.kernels
    }


def flags_of(name: str, *, machine: str, system: str) -> tuple[list[str], list[str]]:
    """Return a file's own flags, and those that the compiler may lack.

    ``machine`` and ``system`` are those of the module ``platform``. On macOS one command may
    compile for both processors, whichever this one is, so flags name the one that they are for.
    """
    always = REDUCED_FLAGS if name.startswith("reduced_") else []
    of_file = (one for one in INSTRUCTION_SETS if name in one.files())
    found = next(of_file, INSTRUCTION_SETS[-1])
    own, optional = list(found.flags), list(found.optional)
    if system == "Darwin":
        own, optional = _for_x86_alone(own), _for_x86_alone(optional)
    elif machine.lower() not in ("x86_64", "amd64"):
        own, optional = [], []
    return always + own, optional


def _for_x86_alone(flags: list[str]) -> list[str]:
    return [word for flag in flags for word in ("-Xarch_x86_64", flag)]


def source_hash(folder: Path) -> int | None:
    """Return 64 bits that change with the C++ files of ``folder`` and this one.

    None where there are no C++ files.
    """
    files = sorted(file for end in ("*.h", "*.cpp") for file in folder.glob(end))
    if not files:
        return None
    found = hashlib.sha256()
    for file in (*files, folder / "processors.py"):
        text = file.read_bytes()
        found.update(f"{file.name}\0{len(text)}\0".encode())
        found.update(text)
    return int.from_bytes(found.digest()[:8], "little")


def make_header() -> str:
    """Return the table as ``processors.h`` has it: a row for each kernel, by its bit's number."""
    rows = sorted(
        (number, precision, one)
        for one in INSTRUCTION_SETS
        for precision, number in one.kernels.items()
    )
    lines = [_row(precision, one) for _, precision, one in rows]
    body = " \\\n    ".join(("#define K2T_KERNELS(KERNEL)", *lines))
    return f"{_HEAD}{body}\n"


_HEAD = """\
// Made from processors.py by tools/write_docs.py. KERNEL(constant, kernel, name, where, needs...)
// stands for the kernel of an instruction set for a precision, from bit 0 on. where: K2T_ANYWHERE
// or K2T_X86. needs: bits of the registers of CPUID 1.0 ecx, 7.0 ebx, 7.0 ecx, 7.0 edx, 7.1 eax;
// of XCR0.
#pragma once

"""


def _row(precision: str, instruction_set: InstructionSet) -> str:
    kernel = f"{precision}_{instruction_set.file}"
    masks = (
        *(instruction_set.cpuid.get(register, ()) for register in REGISTERS),
        instruction_set.xcr0,
    )
    needs = ", ".join(f"{sum(1 << bit for bit in bits):#x}" for bits in masks)
    where = "K2T_X86" if instruction_set.flags else "K2T_ANYWHERE"
    label = f"{precision} {instruction_set.name}"
    return f'KERNEL(K2T_{kernel.upper()}, k2t_{kernel}, "{label}", {where}, {needs})'
