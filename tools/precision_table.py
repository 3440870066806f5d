"""Make the table of reduced precision from the raw results of ``benchmarks/precision.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "precision-2026-11-28.json"
HEAD = (
    "| two layers, `concat` | batch x time x input x units | threads | float32, ms "
    "| bfloat16 / float32 | / OpenVINO's | error, theirs | int8 / float32 | / ONNX Runtime's "
    "| / torch's | error, theirs |\n|---|---|--:|--:|--:|--:|---|--:|--:|--:|---|\n"
)


def table() -> str:
    """Make the table: ratios of medians, and relative errors against float64."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    rows.sort(key=lambda row: (row["case"]["rnn"] != "lstm", row["case"]["batch"], row["threads"]))
    return HEAD + "".join(map(_line, rows))


def _line(row: Mapping[str, Any]) -> str:
    case, found = row["case"], row["contenders"]

    def ratio(name: str, to: str) -> str:
        if "median_ms" not in found[to]:
            return ""
        return f"{found[name]['median_ms'] / found[to]['median_ms']:.2f}"

    def errors(*names: str) -> str:
        shown = [found[n]["relative_error"] for n in names if "relative_error" in found[n]]
        return ", ".join(f"{error:.1e}" for error in shown)

    one, two, three = "k2t float32", "k2t bfloat16", "k2t int8"
    openvino, onnx, torch = "OpenVINO default", "ONNX Runtime int8", "torch quantize_dynamic"
    size = "x".join(str(case[key]) for key in ("batch", "time", "features", "units"))
    cells = (
        case["rnn"].upper(),
        size,
        str(row["threads"]),
        f"{found[one]['median_ms']:.3g}",
        ratio(two, one),
        ratio(two, openvino),
        errors(two, openvino),
        ratio(three, one),
        ratio(three, onnx),
        ratio(three, torch),
        errors(three, onnx, torch),
    )
    return f"| {' | '.join(cells)} |\n"
