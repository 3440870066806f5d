"""Make the table of whole models from the raw results of ``benchmarks/models.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
TRAINED = RESULTS / "models-2026-11-27.json"
SMALL = RESULTS / "models-small-2026-11-27.json"
OURS, COMPILED = "k2t", "k2t compiled"
HEAD = (
    "| model | batch | k2t, ms | compiled by torch, ms | best other, ms | k2t / best other "
    "| k2t / best Keras |\n|---|--:|--:|--:|--:|--:|--:|\n"
)


def table(results: Path) -> str:
    """Make a line for each model and batch: medians and their ratios."""
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    return HEAD + "".join(map(_line, rows))


def _line(row: Mapping[str, Any]) -> str:
    case = row["case"]
    medians = {t["contender"]: t["median_ms"] for t in row["timings"] if t["median_ms"]}
    ours, compiled = medians.pop(OURS), medians.pop(COMPILED, None)
    name = min(medians, key=lambda one: medians[one])
    keras = [ms for one, ms in medians.items() if one.startswith("Keras")]
    cells = (
        case["path"].split(".weights")[0].rpartition("__")[0] or Path(case["path"]).stem,
        str(case["batch"]),
        f"{ours:.3g}",
        "" if compiled is None else f"{compiled:.3g}",
        f"{medians[name]:.3g} {name}",
        f"{ours / medians[name]:.2f}",
        f"{ours / min(keras):.2g}" if keras else "",
    )
    return f"| {' | '.join(cells)} |\n"
