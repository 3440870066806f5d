"""Make the tables of whole models from the raw results of ``benchmarks``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
MODELS = RESULTS / "models-2026-11-27.json"
FLOOR = RESULTS / "eager-floor-2026-11-27.json"
OURS, COMPILED = "k2t", "k2t compiled"
HEAD = (
    "| model | batch | k2t, ms | compiled by torch, ms | best other, ms | k2t / best other "
    "| k2t / best Keras |\n|---|--:|--:|--:|--:|--:|--:|\n"
)


def table(results: Path) -> str:
    """Make a line for each model and batch: medians and their ratios."""
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    ratios = [ratio for row in rows if (ratio := _ratio(row))]
    most = sum(ratio <= 1 for ratio in ratios)
    end = (
        f"\nMeasured: {len(ratios)} cases, {most} of them at least as fast as the best other, "
        f"median {statistics.median(ratios):.2f}, largest ratio {max(ratios):.2f}.\n"
    )
    return HEAD + "".join(map(_line, rows)) + end


def _medians(row: Mapping[str, Any]) -> dict[str, float]:
    return {t["contender"]: t["median_ms"] for t in row["timings"] if t["times_ms"]}


def _ratio(row: Mapping[str, Any]) -> float:
    medians = _medians(row)
    others = [ms for name, ms in medians.items() if name not in (OURS, COMPILED)]
    return medians[OURS] / min(others)


def floor_table(results: Path) -> str:
    """Make a line for each model: in one call, layer by layer, and the floor of eager PyTorch."""
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    head = (
        "| model, batch 1 | torch operators | layer by layer, us | floor of eager PyTorch, us "
        "| in one call, us |\n|---|--:|--:|--:|--:|\n"
    )
    return head + "".join(
        f"| {_name(row['model'])} | {row['operators']} | {row['medians_us']['layer by layer']:.0f} "
        f"| {row['floor_us']:.0f} | {row['medians_us']['one call']:.0f} |\n"
        for row in rows
    )


def _name(path: str) -> str:
    return path.split(".weights")[0].rpartition("__")[0] or Path(path).stem


def _line(row: Mapping[str, Any]) -> str:
    case = row["case"]
    medians = _medians(row)
    ours, compiled = medians.pop(OURS), medians.pop(COMPILED, None)
    name = min(medians, key=lambda one: medians[one])
    keras = [ms for one, ms in medians.items() if one.startswith("Keras")]
    cells = (
        _name(case["path"]),
        str(case["batch"]),
        f"{ours:.3g}",
        "" if compiled is None else f"{compiled:.3g}",
        f"{medians[name]:.3g} {name}",
        f"{ours / medians[name]:.2f}",
        f"{ours / min(keras):.2g}" if keras else "",
    )
    return f"| {' | '.join(cells)} |\n"
