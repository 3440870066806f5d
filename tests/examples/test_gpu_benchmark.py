"""``make gpu`` without a device: its dry run on the CPU, with tiny sizes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu


@pytest.mark.thorough
def test_a_dry_run_lacks_nothing_but_the_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results" / "gpu.json"
    gpu.main(["--device", "cpu", "--dry-run", "--json", str(results)])
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["wrong"] == []
    assert found["tests"]["code"] == 0
    timed = [row for row in found["rows"] if "ms" in row]
    assert {row["contender"] for row in timed} == {gpu.OURS, gpu.LOOP, gpu.PLAIN}
    assert {row["tf32"] for row in timed} == {False, True}
    assert all(row["ok"] and row["error"] < 1e-5 for row in timed)
    by_torch = [row["engines"] for row in timed if row["contender"] == gpu.PLAIN]
    assert all(engines.startswith("torch's kernel") for engines in by_torch)
    cases = {row["case"] for row in found["rows"]}
    assert sum(line.startswith("| ") for line in found["table"].splitlines()) == 1 + 2 * len(cases)
    assert f"all is well \n\nThe file to send: {results}" in capsys.readouterr().out


def test_everything_that_is_wrong_is_named() -> None:
    good = {"case": "lstm", "contender": gpu.OURS, "error": 1e-7, "ok": True}
    found = {
        "tests": {"code": 1, "said": "a\n2 failed, 3 passed"},
        "rows": [
            good,
            {**good, "error": 0.5, "ok": False},
            {**good, "contender": gpu.PLAIN, "absent": "nn.GRU resets after the product"},
            {"case": "gru", "failed": "Traceback\n  in f\nRuntimeError: CUDA error\n"},
            {"case": "a.h5", "absent": "no file"},
        ],
    }
    assert gpu.list_faults(found) == [
        "tests: 2 failed, 3 passed",
        f"lstm, {gpu.OURS}: 5.0e-01 off",
        "gru, all: failed: RuntimeError: CUDA error",
        "a.h5, all: no file",
    ]


def test_what_fails_or_never_ends_is_in_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(gpu.list_cases([], tiny=True))

    def fail(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(gpu.by_torch, "prepare", fail)
    (row,) = gpu.run_case(case, "cpu", 1)
    assert row["failed"].endswith("RuntimeError: CUDA error: an illegal memory access\n")

    def run(command: Any, **_: Any) -> Any:
        out = 'a word of another\n{"contender": "k2t"}\n'
        return subprocess.CompletedProcess(command, -11, out, "it died")

    monkeypatch.setattr(gpu.subprocess, "run", run)
    died = {"failed": "exit code -11: it died"}
    assert gpu.run_apart(case, "cuda", 1) == [{"contender": "k2t"}, died]

    def wait(command: Any, *, timeout: float, **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(gpu.subprocess, "run", wait)
    late = {"failed": f"exit code -9: not done in {gpu.LONGEST} s"}
    assert gpu.run_apart(case, "cuda", 1) == [late]


@pytest.mark.thorough
def test_a_case_is_timed_in_a_process_of_its_own(tmp_path: Path) -> None:
    case = gpu.Model(str(tmp_path / "none.h5"), batch=1, time=3)
    (row,) = gpu.run_apart(case, "cpu", 1)
    assert "none.h5" in row["absent"]


def test_without_a_device_the_script_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device: --device cpu --dry-run shows"):
        gpu.main([])
