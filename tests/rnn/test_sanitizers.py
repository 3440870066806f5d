"""The native kernel under the sanitizers of addresses, undefined behaviour and threads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from built_kernels import (
    COMPILER,
    NATIVE_TESTS,
    NUMBERS,
    build_program,
)
from kernel_layers import native

from keras2torch_birnn.rnn.native import library


def exercise(folder: Path, sanitizers: str, sets: int) -> Path:
    """Return the program that runs the kernel, all with sanitizers, for these instruction sets."""
    flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-O1", "-g1"]
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    for command in ([COMPILER, *flags, probe, "-o", folder / "probe"], [folder / "probe"]):
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"no sanitizers for {sanitizers} here")
    return build_program(NATIVE_TESTS / "exercise.cpp", folder, flags, sets)


def bits_of(*kernels: str) -> int:
    """Return the bits of ``k2t_instruction_sets()`` for kernels by their names in C++."""
    return sum(1 << NUMBERS[name] for name in kernels)


# It builds the kernel anew, twice.
pytestmark = [native, pytest.mark.thorough]


# Threads share work in the same way whatever the instruction set and the type: those of any
# processor will do.
# Reduced precision reads and writes in the same places by any, of which the widest go farthest:
# AVX512-VNNI for AVX-VNNI. What AMX loads and stores no sanitizer sees.
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_nothing_is_reported_and_all_threads_give_the_same(sanitizers: str, tmp_path: Path) -> None:
    sets = library.library().k2t_instruction_sets()
    if sanitizers == "thread":
        sets = bits_of("float32_plain")
    elif sets & bits_of("int8_avx512vnni"):
        sets &= ~bits_of("int8_avxvnni", "int8_amx", "bfloat16_amx")
    program = exercise(tmp_path, sanitizers, sets)
    run = subprocess.run([program, str(sets)], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "the same numbers\n", "")
