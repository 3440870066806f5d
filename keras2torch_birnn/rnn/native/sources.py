"""Compiler options of the kernel's sources, and the hash of them that the library carries.

It imports nothing of the package: ``setup.py`` runs this file before there is one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

# -O2 -g0 -fno-wrapv: with Python's own -O3 -g -fwrapv, GCC takes minutes over the unrolled products
# and makes nothing faster.
COMMON = "-std=c++17 -O2 -g0 -fno-wrapv -fPIC -fvisibility=hidden -pthread -Wall -Wextra".split()
_AVX2 = ["-mavx2", "-mfma"]
_AVX512 = [
    *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"),
    "-mprefer-vector-width=512",
]
# One file per instruction set, each with its own flags on x86-64; the processor is asked at run
# time.
FLAGS = {
    "isa_avx2.cpp": _AVX2,
    "isa_avx512.cpp": _AVX512,
    "reduced_avx2.cpp": _AVX2,
    "reduced_avxvnni.cpp": _AVX2,
    "reduced_avx512bf16.cpp": _AVX512,
    "reduced_avx512vnni.cpp": _AVX512,
}
# Compilers since GCC 10 or 11 know these. Without them a file is compiled to an empty table.
OPTIONAL_FLAGS = {
    "reduced_avxvnni.cpp": ["-mavxvnni"],
    "reduced_avx512bf16.cpp": ["-mavx512bf16"],
    "reduced_avx512vnni.cpp": ["-mavx512vnni"],
}
# Reduced precision gives the same bits on every processor: no product is fused unless told to.
REDUCED = ["-ffp-contract=off", "-Wno-unused-function"]


def flags_of(name: str, *, machine: str, system: str) -> tuple[list[str], list[str]]:
    """Return a file's own flags, and those that the compiler may lack.

    ``machine`` and ``system`` are those of the module ``platform``. On macOS one command may
    compile for both processors, whichever this one is, so flags name the one that they are for.
    """
    always = REDUCED if name.startswith("reduced_") else []
    own, optional = FLAGS.get(name, []), OPTIONAL_FLAGS.get(name, [])
    if system == "Darwin":
        own, optional = _for_x86_alone(own), _for_x86_alone(optional)
    elif machine.lower() not in ("x86_64", "amd64"):
        own, optional = [], []
    return always + own, optional


def _for_x86_alone(flags: list[str]) -> list[str]:
    return [word for flag in flags for word in ("-Xarch_x86_64", flag)]


def source_hash(folder: Path) -> int | None:
    """Return 64 bits that change with the C++ files of ``folder`` and with this one.

    None where there are no C++ files.
    """
    files = sorted(file for end in ("*.h", "*.cpp") for file in folder.glob(end))
    if not files:
        return None
    found = hashlib.sha256()
    for file in (*files, folder / "sources.py"):
        text = file.read_bytes()
        found.update(f"{file.name}\0{len(text)}\0".encode())
        found.update(text)
    return int.from_bytes(found.digest()[:8], "little")
