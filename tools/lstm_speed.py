"""Make the tables of the kernel before and after a change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
LAYERS, PAIRS = RESULTS / "lstm-2026-11-27.json", RESULTS / "kernel-pairs-2026-11-27.json"
OURS = "k2t"
HEAD = (
    "| two layers, `mul` | batch x time x input x units | threads | before, ms | / best other "
    "| after, ms | / best other |\n"
    "|---|---|--:|--:|--:|--:|--:|\n"
)


def table() -> str:
    """Make a line for each case: medians before and after, each against its own peers' run."""
    lines: dict[tuple[Any, ...], dict[str, Mapping[str, float]]] = {}
    for row in json.loads(LAYERS.read_text(encoding="utf-8"))["rows"]:
        case = row["case"]
        what = "a step of training" if case["training"] else "inference"
        name = f"{what}, half padded" if case["masked"] else what
        sizes = "x".join(str(case[key]) for key in ("batch", "time", "features", "units"))
        medians = {t["contender"]: t["median_ms"] for t in row["timings"] if t["median_ms"]}
        lines.setdefault((name, sizes, row["threads"]), {})[row["when"]] = medians
    return HEAD + "".join(
        f"| {name} | {sizes} | {threads} | {_cells(found['before'])} | {_cells(found['after'])} |\n"
        for (name, sizes, threads), found in lines.items()
    )


def _cells(medians: Mapping[str, float]) -> str:
    others = {name: ms for name, ms in medians.items() if name != OURS}
    best = min(others, key=lambda name: others[name])
    return f"{medians[OURS]:.3g} | {medians[OURS] / others[best]:.2f} {best}"


def pairs() -> str:
    """Make a line for each cell, way and number of threads: one layer's time of that before."""
    lines: dict[str, dict[str, float]] = {}
    for row in json.loads(PAIRS.read_text(encoding="utf-8"))["rows"]:
        if row["training"] and row["way"] == "forward":
            continue
        way = ", the way back" if row["training"] else ""
        name = f"{row['cell']}{way}, {row['threads']} thread{'s' * (row['threads'] > 1)}"
        sizes = "x".join(map(str, row["shape"]))
        lines.setdefault(name, {})[sizes] = row["median_of_ratios"]
    heads = list(dict.fromkeys(sizes for found in lines.values() for sizes in found))
    text = f"| of one layer's time before | {' | '.join(heads)} |\n|---|{'--:|' * len(heads)}\n"
    return text + "".join(
        f"| {name} | {' | '.join(f'{found[h]:.2f}' if h in found else '' for h in heads)} |\n"
        for name, found in lines.items()
    )
