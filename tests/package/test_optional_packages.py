"""The tests run where an optional package is missing, but for those that need it."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest
from commands import Run, environment, run_process
from optional_packages import OPTIONAL

pytestmark = pytest.mark.thorough  # pytest in processes of its own
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


def find_users(names: frozenset[str]) -> set[Path]:
    """The files of tests that import one of these first."""
    return {file for file in TESTS.rglob("test_*.py") if imported(file) & names}


def run(*options: object, without: str = "") -> Run:
    """Run pytest with the settings of all tests, wherever the files are."""
    # Hypothesis' own plugin cannot do without it.
    plugins = "--assert=plain -p no:cacheprovider -p conftest -p no:hypothesispytest"
    paths = os.pathsep.join(map(str, (TESTS, TESTS / "support", ROOT / "tools")))
    command = (sys.executable, "-m", "pytest", "-q", "-rs", *plugins.split(), *options)
    return run_process(*command, cwd=ROOT, env=environment(K2T_WITHOUT=without, PYTHONPATH=paths))


def test_files_that_need_a_missing_package_are_skipped_and_all_others_are_collected() -> None:
    skipped, drawing = find_users(OPTIONAL), find_users(frozenset({"hypothesis"}))
    assert {"onnx", "onnxruntime"} <= set().union(*map(imported, skipped))
    without = " ".join((*OPTIONAL, "hypothesis", "onnx_ir"))
    done = run("--collect-only", *skipped, *drawing, Path(__file__), without=without)
    assert done.code == 0, done.out + done.err
    lines = done.out.splitlines()
    found = {ROOT / line.partition("::")[0] for line in lines if "::" in line}
    assert found == {*drawing, Path(__file__)} - skipped
    reasons = {line.rpartition(": ")[2] for line in lines if line.startswith("SKIPPED")}
    assert reasons <= {f"{name} is not installed" for name in OPTIONAL}
    assert len(reasons) > 1


DRAWING = """
import pytest
from hypothesis import given, settings, strategies as st

@st.composite
def pairs(draw):
    return draw(st.integers()), draw(st.text())

@pytest.mark.parametrize("number", [2, 3])
@settings(max_examples=9)
@given(pairs() | st.none())
def test_of_any_pair(number, pair):
    raise AssertionError

def test_with_one_inside():
    @given(pair=pairs())
    def check(pair):
        raise AssertionError
    check()

def test_of_nothing_drawn():
    pass
"""


def test_without_hypothesis_its_tests_are_skipped_and_no_other_package_may_be_missing(
    tmp_path: Path,
) -> None:
    (tmp_path / "test_of_drawn_things.py").write_text(DRAWING)
    (tmp_path / "test_of_nothing.py").write_text("import a_package_that_nobody_wrote\n")
    done = run("--continue-on-collection-errors", tmp_path, without="hypothesis")
    assert "1 passed, 3 skipped, 1 error" in done.out, done.out
    assert "No module named 'a_package_that_nobody_wrote'" in done.out
    assert "hypothesis is not installed" in done.out
