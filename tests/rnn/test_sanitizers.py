"""The native kernel under the sanitizers of addresses, undefined behaviour and threads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from built_kernels import COMPILER, FLOAT32_SETS, NATIVE_TESTS, PLAIN_SETS, build_program
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


# It builds the kernel anew, twice.
pytestmark = [native, pytest.mark.thorough]


# Threads share work in the same way whatever the instruction set: those of any processor will do.
# Reduced precision reads and writes in the same places by any, of which the widest go farthest.
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_nothing_is_reported_and_all_threads_give_the_same(sanitizers: str, tmp_path: Path) -> None:
    sets = library.library().k2t_instruction_sets()
    if sanitizers == "thread":
        sets = PLAIN_SETS
    elif sets != PLAIN_SETS:
        sets &= ~PLAIN_SETS | FLOAT32_SETS
    program = exercise(tmp_path, sanitizers, sets)
    run = subprocess.run([program, str(sets)], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "the same numbers\n", "")
