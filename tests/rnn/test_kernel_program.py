"""The native kernel, by a program in C++ that compares it with a plain loop in double."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from keras2torch_birnn.rnn.native.library import FOLDER, NAME

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.skipif(not (FOLDER / NAME).exists(), reason="the kernel was not built")
def test_the_kernel_of_this_machine_computes_what_a_plain_loop_does(tmp_path: Path) -> None:
    program = tmp_path / "compare"
    source = ROOT / "tests" / "native" / "compare.cpp"
    options = ["-std=c++17", "-O1", f"-I{FOLDER}", "-pthread", f"-Wl,-rpath,{FOLDER}"]
    command = [str(COMPILER), *options, str(source), str(FOLDER / NAME), "-o", str(program)]
    subprocess.run(command, check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert re.match(r"\d{3} layers, instruction sets \d+, largest error .*: right\n", run.stdout)


def test_no_number_of_the_kernel_is_a_long_which_has_32_bits_on_windows() -> None:
    sources = [*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp")]
    code = {file.name: re.sub(r"//.*", "", file.read_text("utf-8")) for file in sources}
    assert {name for name, text in code.items() if re.search(r"\blong\b", text)} == set()


def check_platforms(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script, environment = ROOT / "tools" / "check_platforms.sh", {**os.environ, "PYTHON": python}
    return subprocess.run([script, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.thorough
@pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is not installed")
def test_the_kernel_compiles_for_other_systems(tmp_path: Path) -> None:
    """Without emulators; ``tools/check_platforms.sh`` alone runs what it compiled, too."""
    run = check_platforms(sys.executable, "--compile", str(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout == "Windows x86-64, macOS arm64, Linux arm64: compiled\n"


def test_the_script_says_what_is_not_installed(tmp_path: Path) -> None:
    run = check_platforms("no-such-python", str(tmp_path))
    assert run.returncode == 77
    assert run.stderr == "no-such-python has no package ziglang, or no setuptools >= 77\n"
