"""The tests run where an optional package is missing, but for those that need it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from optional_packages import OPTIONAL

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"


def imported(file: Path) -> set[str]:
    """The top names of what a file imports first."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found


def find_users() -> Mapping[str, Path]:
    """One file of tests for each optional package that some file imports first."""
    users: dict[str, Path] = {}
    for file in sorted(TESTS.rglob("test_*.py")):
        for name in imported(file) & OPTIONAL:
            users.setdefault(name, file)
    return users


def collect(*files: Path, without: str = "") -> subprocess.CompletedProcess[str]:
    """Collect tests with the settings of all of them, wherever the files are."""
    options = "-q -rs --collect-only -p no:cacheprovider -p conftest"
    # Hypothesis' own plugin cannot do without it.
    command = [sys.executable, "-m", "pytest", *options.split(), "-p", "no:hypothesispytest"]
    paths = os.pathsep.join(map(str, (TESTS, TESTS / "support", ROOT / "tools")))
    return subprocess.run(
        [*command, *map(str, files)],
        cwd=ROOT,
        env={**os.environ, "K2T_WITHOUT": without, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )


def test_files_that_need_a_missing_package_are_skipped_and_all_others_run() -> None:
    users = find_users()
    assert {"hypothesis", "matplotlib", "onnx", "onnxruntime"} <= set(users)
    done = collect(*users.values(), Path(__file__), without=" ".join(OPTIONAL))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    found = {line.partition("::")[0] for line in lines if "::" in line}
    assert found == {str(Path(__file__).relative_to(ROOT))}
    reasons = {line.rpartition(": ")[2] for line in lines if line.startswith("SKIPPED")}
    assert reasons <= {f"{name} is not installed" for name in OPTIONAL}
    assert len(reasons) > 2


def test_any_other_missing_package_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "test_of_nothing.py"
    file.write_text("import a_package_that_nobody_wrote\n")
    done = collect(file)
    assert done.returncode != 0
    assert "No module named 'a_package_that_nobody_wrote'" in done.stdout
