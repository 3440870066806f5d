"""Make the table of gradient penalties: raw results of ``benchmarks/gradient_penalty.py``."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "penalty-2026-11-28.json"
HEAD = (
    "| one layer, `concat` | batch x time x input x units | 1 thread: k2t, ms | / torch "
    "| 2 threads: k2t, ms | / torch |\n|---|---|--:|--:|--:|--:|\n"
)


def table() -> str:
    """Make the table: medians, and the ratio of medians."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    lines: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for row in rows:
        ours, theirs = (median(row["times_ms"][name]) for name in ("k2t", "torch"))
        size = "x".join(map(str, row["shape"]))
        lines.setdefault((row["cell"].upper(), size), {})[row["threads"]] = ours, ours / theirs
    return HEAD + "".join(
        "| "
        + " | ".join(
            [cell, size, *(f"{ms:.3g} | {ratio:.2f}" for ms, ratio in (found[1], found[2]))]
        )
        + " |\n"
        for (cell, size), found in sorted(lines.items(), key=lambda line: line[0][0] != "LSTM")
    )
