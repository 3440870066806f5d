"""``make gpu`` without a device: its dry run on the CPU, with tiny sizes."""

from __future__ import annotations

import json
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
    assert {row["part"] for row in found["rows"]} == {"layers", "training", "models"}
    assert {row["tf32"] for row in found["rows"]} == {False, True}
    timed = {row["contender"] for row in found["rows"] if "ms" in row}
    assert {"k2t", "loop", "torch"} <= timed
    assert all(row["ok"] and row["error"] < 1e-5 for row in found["rows"] if "ms" in row)
    assert [p["ok"] for p in found["parity"]] == [True]
    assert all(one["ok"] for one in found["tests"].values())
    lines = table.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| training: lstm-hard 2x3x5x7 masked |") for line in lines) == 2


def test_everything_else_that_is_missing_is_named() -> None:
    good = {"case": "lstm", "contender": "k2t", "ms": 1.0, "error": 1e-7, "ok": True}
    found = {
        "tests": {"tests": {"ok": False}, "others": {"ok": True}},
        "parity": [{"model": "a.h5", "ok": False}, {"model": "b.h5", "absent": "no file"}],
        "rows": [
            good,
            {**good, "error": 0.5, "ok": False},
            {"case": "lstm", "contender": "torch", "absent": "nn.GRU resets after the product"},
            {"case": "lstm", "contender": "k2t triton", "absent": gpu.OF_THE_DEVICE[0]},
            {"case": "gru", "contender": "k2t graph", "absent": "OSError: no compiler"},
            {"case": "c.h5", "absent": "unsupported"},
        ],
    }
    assert gpu.what_else_is_missing(found) == [
        "tests: tests",
        "a.h5: not equal",
        "b.h5: no file",
        "lstm, k2t: 5.0e-01 off",
        "gru, k2t graph: OSError: no compiler",
        "c.h5, None: unsupported",
    ]


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


def test_without_a_device_the_script_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device: --device cpu --dry-run shows"):
        gpu.main([])
