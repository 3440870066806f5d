"""``make gpu`` without a device: its dry run on the CPU, with tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu


@pytest.mark.thorough
def test_a_dry_run_lacks_nothing_but_the_device(tmp_path: Path) -> None:
    results, table = tmp_path / "results" / "gpu.json", tmp_path / "gpu.md"
    options = ["--device", "cpu", "--dry-run", "--json", str(results), "--table", str(table)]
    gpu.main(options)
    found = json.loads(results.read_text(encoding="utf-8"))
    assert {row["part"] for row in found["rows"]} == {"parity", "layers", "training", "models"}
    assert {row["tf32"] for row in found["rows"] if "tf32" in row} == {False, True}
    timed = {row["contender"] for row in found["rows"] if "ms" in row}
    assert {"k2t", "loop", "torch"} <= timed
    assert all(row["ok"] and row["error"] < 1e-5 for row in found["rows"] if "ms" in row)
    assert [row["ok"] for row in found["rows"] if row["part"] == "parity"] == [True]
    assert found["wrong"] == []
    looped = [row for row in found["rows"] if row.get("contender") == "loop"]
    assert any(list(row["engines"]) == ["loop"] for row in looped)
    assert all(row["warnings"] == [] for row in looped)
    assert all(one["ok"] for one in found["tests"].values())
    lines = table.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| training: lstm-hard 2x3x5x7 masked |") for line in lines) == 2


def outcome_of(failed: dict[str, str], summary: str, alone: Sequence[str] = ()) -> dict[str, Any]:
    return {"ok": False, "failed": failed, "summary": summary, "passed_alone": [*alone]}


def test_everything_that_is_wrong_but_for_the_device_is_named() -> None:
    good = {"part": "layers", "case": "lstm", "contender": "k2t", "error": 1e-7, "ok": True}
    found = {
        "tests": {
            "tests": outcome_of({"a::b": "no", "a::c": "no"}, "2 failed", alone=["a::c"]),
            "steps": outcome_of({}, "cannot be collected"),
            "others": {**outcome_of({}, "1 passed"), "ok": True},
        },
        "rows": [
            good,
            {"part": "parity", "case": "a.h5", "ok": False},
            {"part": "parity", "case": "b.h5", "absent": "no file"},
            {**good, "error": 0.5, "ok": False},
            {**good, "failed": "Traceback\n  in f\nRuntimeError: CUDA error"},
            {**good, "contender": "torch", "absent": "nn.GRU resets after the product"},
            {**good, "contender": "k2t triton", "absent": gpu.OF_THE_DEVICE[0]},
            {**good, "case": "gru", "contender": "k2t graph", "absent": "OSError: no compiler"},
        ],
    }
    assert gpu.what_is_wrong(found) == [
        "tests: tests: a::b",
        "tests: tests: a::c, but not alone",
        "tests: steps: cannot be collected",
        "a.h5, parity: not equal",
        "b.h5, parity: no file",
        "lstm, k2t: 5.0e-01 off",
        "lstm, k2t: failed: RuntimeError: CUDA error",
        "gru, k2t graph: OSError: no compiler",
    ]


def test_what_fails_is_in_the_results_and_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = gpu.by_torch.prepare

    def prepare_but_one(case: Any, how: str, *rest: Any) -> Any:
        if how == "loop":
            raise RuntimeError("CUDA error: an illegal memory access")
        return prepare(case, how, *rest)

    monkeypatch.setattr(gpu.by_torch, "prepare", prepare_but_one)
    work = next(w for w in gpu.works(gpu.TINY, []) if w["part"] == "layers")
    rows = [*gpu.rows_of(work, "cpu")]
    assert [row["contender"] for row in rows] == ["k2t", "k2t graph", "k2t triton", "loop"]
    assert rows[-1]["failed"].endswith("RuntimeError: CUDA error: an illegal memory access\n")
    assert next(gpu.rows_of(work, "cpu", len(rows)))["contender"] == "torch"


def test_another_process_goes_on_behind_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [
        ('{"contender": "k2t"}\n{"contender": "loop", "failed": "no"}\n', 0),
        ("a word of another\n", -11),
        ('{"contender": "torch"}\n', 0),
    ]
    starts = []

    def run(command: Any, **_: Any) -> Any:
        starts.append(command[-1])
        out, code = said.pop(0)
        return subprocess.CompletedProcess(command, code, out, "it died")

    monkeypatch.setattr(gpu.subprocess, "run", run)
    rows = [*gpu.in_processes({"part": "layers", "case": "lstm"}, "cuda")]
    assert rows == [
        {"contender": "k2t"},
        {"contender": "loop", "failed": "no"},
        {"failed": "exit code -11: it died"},
        {"contender": "torch"},
    ]
    assert starts == ["0", "2", "3"]


def test_a_process_that_never_ends_is_ended_and_what_it_wrote_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(command: Any, *, timeout: float, **_: Any) -> Any:
        rows = b'{"contender": "k2t", "failed": "no"}\n' if command[-1] == "0" else b""
        raise subprocess.TimeoutExpired(command, timeout, output=rows, stderr=None)

    monkeypatch.setattr(gpu.subprocess, "run", run)
    rows = [*gpu.in_processes({"part": "layers", "case": "lstm"}, "cuda")]
    late = {"failed": f"exit code -9: \nnot done in {gpu.LONGEST} s"}
    assert rows[:3] == [{"contender": "k2t", "failed": "no"}, late, late]
    assert len(rows) == 2 * len(gpu.RUNS)
    (tests,) = gpu.run_tests(["tests/none.py"]).values()
    said = f"not done in {gpu.LONGEST_TESTS} s"
    assert tests == {**outcome_of({}, f"exit code -9: {said}"), "said": said}


def test_a_process_that_prints_other_things_or_nothing_is_in_the_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = '{"contender": "k2t"}\n'
    said = [(f"{{no\n[1]\n{row}{row[:9]}", 0), ("", 0), ("\n", 0)]

    def run(command: Any, **_: Any) -> Any:
        out, code = said.pop(0)
        return subprocess.CompletedProcess(command, code, out, "a last word")

    monkeypatch.setattr(gpu.subprocess, "run", run)
    work = {"part": "layers", "case": "lstm"}
    assert [*gpu.in_processes(work, "cuda")] == [{"contender": "k2t"}]
    # nothing at first, and nothing left to do in the next process
    assert [*gpu.in_processes(work, "cuda")] == [{"failed": "exit code 0: a last word"}]


def test_what_is_no_text_is_kept() -> None:
    command = [gpu.sys.executable, "-c", "import sys; sys.stdout.buffer.write(b'a\\xff')"]
    assert gpu.run_process(command).stdout == "a\ufffd"


def test_a_test_that_ends_its_process_is_named_and_others_run(tmp_path: Path) -> None:
    page, report = tmp_path / "test_page.py", tmp_path / "junit.xml"
    page.write_text("import os\ndef test_bad(): os.abort()\ndef test_good(): pass\n")
    options = ["-c", "/dev/null", f"--junitxml={report}"]
    done = gpu.run_process([*gpu.PYTEST, str(page), *options])
    assert "1 failed, 1 passed" in done.stdout
    (name,) = gpu._failures(report)
    assert name.endswith("test_page.py::test_bad")


def test_tests_that_failed_are_run_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One error of a device fails all tests behind it."""
    ran = []

    def run(command: Any, *_: Any) -> Any:
        name = command[len(gpu.PYTEST)]
        ran.append(name)
        return subprocess.CompletedProcess(command, int(not name.endswith("c")), "2 failed", "")

    monkeypatch.setattr(gpu, "run_process", run)
    monkeypatch.setattr(gpu.Path, "exists", lambda _: True)
    monkeypatch.setattr(gpu, "_failures", lambda _: {"tests/a.py::b": "no", "tests/a.py::c": "no"})
    (tests,) = gpu.run_tests(["tests/a.py"]).values()
    assert ran == ["tests/a.py", "tests/a.py::b", "tests/a.py::c"]
    assert tests["passed_alone"] == ["tests/a.py::c"]


@pytest.mark.thorough
def test_a_work_is_done_in_a_process_of_its_own(tmp_path: Path) -> None:
    work = {"part": "parity", "case": "none.h5", "path": str(tmp_path / "none.h5")}
    (row,) = gpu.in_processes(work, "cpu")
    assert "none.h5" in row["absent"]


def test_tests_that_fail_are_named(tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.a" name="good"/>'
        '<testcase classname="tests.a" name="bad"><failure message="1 is not 2"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert gpu._failures(report) == {"tests/a.py::bad": "1 is not 2"}


def test_ratios_are_those_of_the_same_size() -> None:
    def row(case: str, contender: str, ms: float) -> dict[str, Any]:
        return {"part": "layers", "case": case, "tf32": False, "contender": contender, "ms": ms}

    lines = gpu.table_of(
        [
            row("lstm 1x2x3x5", "torch", 2.0),
            row("lstm 7x2x3x5", "torch", 9.0),
            row("lstm-hard 1x2x3x5", "k2t", 3.0),
            row("lstm-hard 1x2x3x5", "loop", 12.0),
            row("lstm-hard 1x2x3x5", "Keras XLA", 6.0),
            row("lstm-hard 1x2x3x5", "Keras predict", 8.0),
        ]
    ).splitlines()
    assert lines[2:] == ["| layers: lstm-hard 1x2x3x5 | off | 3 | 0.25 |  | 1.50 | 0.50 |"]


def test_on_a_device_no_kernel_is_interpreted_which_is_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    asked: list[str] = []
    monkeypatch.setattr(gpu, "run_tests", lambda _: asked.append(os.environ["TRITON_INTERPRET"]))
    monkeypatch.setattr(gpu, "works", lambda *_: [])
    monkeypatch.setattr(gpu, "what_is_wrong", lambda _: [])
    results = tmp_path / "gpu.json"
    gpu.main(["--json", str(results), "--table", str(tmp_path / "gpu.md")])
    assert json.loads(results.read_text())["facts"]["variables"]["TRITON_INTERPRET"] == "0"
    assert asked == ["0"]


def test_without_a_device_the_script_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device: --device cpu --dry-run shows"):
        gpu.main([])
