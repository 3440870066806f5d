"""The kernel's sources and compilers other than the one that built the library."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from built_kernels import kernel_sources

from keras2torch_birnn.rnn.native.processors import COMMON, INSTRUCTION_SETS

CLANG = next(
    filter(None, map(shutil.which, ("clang++", *(f"clang++-{n}" for n in range(30, 13, -1))))), None
)


@pytest.mark.thorough
@pytest.mark.skipif(CLANG is None, reason="clang++ is not installed")
def test_clang_accepts_every_source_of_the_kernel_without_a_warning(tmp_path: Path) -> None:
    options = [str(CLANG), *COMMON, "-DK2T_SOURCE_HASH=0", "-Werror", "-fsyntax-only"]
    every_set = sum(1 << bit for one in INSTRUCTION_SETS for bit in one.kernels.values())
    refused = {}
    for source, flags in kernel_sources(tmp_path, every_set):
        done = subprocess.run([*options, *flags, source], capture_output=True, text=True)
        if done.returncode:
            refused[source.name] = done.stderr
    assert refused == {}
