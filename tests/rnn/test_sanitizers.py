"""The native kernel under the sanitizers of addresses, undefined behaviour and threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "keras2torch_birnn" / "rnn" / "native"
COMPILER = shutil.which("c++")
# Bits of k2t_instruction_sets(): of float32, bfloat16 and int8 on any processor.
ALL_SETS, PLAIN_SETS = -1, 1 | 8 | 64


def exercise(folder: Path, sanitizers: str) -> Path:
    """The kernel as ``setup.py`` builds it, and the program that runs it, both with sanitizers."""
    flags = f"-fsanitize={sanitizers} -fno-sanitize-recover=all -O1 -g1"
    if COMPILER is None or find_spec("setuptools") is None:
        pytest.skip("no C++ compiler, or nothing to build with")
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    for command in ([COMPILER, *flags.split(), probe, "-o", folder / "probe"], [folder / "probe"]):
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"no sanitizers for {sanitizers} here")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "-b", folder, "-t", folder / "objects"],
        cwd=ROOT,
        env={**os.environ, "K2T_CXXFLAGS": flags, "K2T_LDFLAGS": flags},
        check=True,
    )
    (library,) = folder.rglob("libk2t.so")
    program = folder / "exercise"
    source = ROOT / "tests" / "native" / "exercise.cpp"
    options = [
        *flags.split(),
        "-std=c++17",
        f"-I{NATIVE}",
        "-pthread",
        f"-Wl,-rpath,{library.parent}",
    ]
    subprocess.run([COMPILER, *options, source, library, "-o", program], check=True)
    return program


# It builds the kernel anew, twice.
pytestmark = pytest.mark.thorough


# Threads share work in the same way whatever the instruction set: those of any processor will do.
@pytest.mark.parametrize(
    ("sanitizers", "sets"), [("address,undefined", ALL_SETS), ("thread", PLAIN_SETS)]
)
def test_nothing_is_reported_and_all_threads_give_the_same(
    sanitizers: str, sets: int, tmp_path: Path
) -> None:
    program = exercise(tmp_path, sanitizers)
    run = subprocess.run([program, str(sets)], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "the same numbers\n", "")
