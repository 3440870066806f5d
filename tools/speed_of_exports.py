"""Make the table of docs/deploy.md from the raw results of ``benchmarks/export_speed.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from speed import NAMES, RESULTS

RESULT = RESULTS / "export-speed-2026-11-27.json"
CONTENDERS = ("k2t", "torch.onnx", "tf2onnx")


def table() -> str:
    """Write the medians of every case, and k2t's by the better of the others."""
    rows = json.loads(RESULT.read_text("utf-8"))["rows"]
    head = "| layers | B x T x F x units | `k2t export` | torch.onnx | tf2onnx | ratio |"
    return "".join(f"{line}\n" for line in (head, f"|{'---|' * 6}", *map(_line, rows)))


def _line(row: Mapping[str, Any]) -> str:
    case = row["case"]
    medians = _medians(row["timings"])
    best = min(medians[name] for name in CONTENDERS[1:] if name in medians)
    sizes = " x ".join(str(case[key]) for key in ("batch", "time", "features", "units"))
    kind = NAMES[case["rnn"], case["recurrent_activation"], case["reset_after"]]
    times = [f"{medians[name]:.3g} ms" if name in medians else "" for name in CONTENDERS]
    masked = ", masked" if case["masked"] else ""
    ratio = f"{medians[CONTENDERS[0]] / best:.2f}"
    return f"| {' | '.join([f'{kind}{masked}', sizes, *times, ratio])} |"


def _medians(timings: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {t["contender"]: t["median_ms"] for t in timings if t["median_ms"]}
