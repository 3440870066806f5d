"""The native kernel under the sanitizers of addresses, undefined behaviour and threads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from built_kernels import COMPILER, NATIVE_TESTS, PLAIN_SETS, build_program
from kernel_layers import native

from keras2torch_birnn.rnn.native import library


def exercise(folder: Path, sanitizers: str, sets: int) -> Path:
    """Return the program that runs the kernel, all with sanitizers, for these instruction sets."""
    flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-O0", "-g1"]
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
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_nothing_is_reported_and_all_threads_give_the_same(sanitizers: str, tmp_path: Path) -> None:
    sets = PLAIN_SETS if sanitizers == "thread" else library.library().k2t_instruction_sets()
    program = exercise(tmp_path, sanitizers, sets)
    run = subprocess.run([program, str(sets)], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "the same numbers\n", "")
