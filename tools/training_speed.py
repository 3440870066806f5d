"""Make the table of steps of training against torch by hand: ``benchmarks/engine.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "training-layers-2026-11-27.json"
OURS, PLAIN, LOOP = "k2t", "torch per layer", "naive loop"
HEAD = (
    "| two layers, `mul` | batch x time x input x units | threads | k2t, ms | / torch "
    "| padded to half: ms | / torch | with dropout: ms | / loop in torch "
    "| / torch without dropout |\n"
    "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
)


def table() -> str:
    """Make a line for each cell, size and number of threads, then a summary."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    lines: dict[tuple[Any, ...], dict[str, Mapping[str, float]]] = {}
    for row in rows:
        case = row["case"]
        sizes = tuple(case[key] for key in ("batch", "time", "features", "units"))
        key = (case["rnn"] != "lstm", sizes, row["threads"])
        kind = "dropout" if case["dropout"] else "masked" if case["masked"] else "plain"
        medians = {t["contender"]: t["median_ms"] for t in row["timings"] if t["median_ms"]}
        lines.setdefault(key, {})[kind] = medians
    text = HEAD + "".join(_line(key, lines[key]) for key in sorted(lines))
    ratios = [
        kinds[kind][OURS] / kinds[kind][PLAIN]
        for kinds in lines.values()
        for kind in ("plain", "masked")
        if PLAIN in kinds.get(kind, {})
    ]
    return (
        f"{text}\nOf {len(ratios)} steps without dropout {sum(r <= 0.7 for r in ratios)} take "
        f"at most 0.70 of torch's time; the largest ratio is {max(ratios):.2f}.\n"
    )


def _line(key: tuple[Any, ...], kinds: Mapping[str, Mapping[str, float]]) -> str:
    is_gru, sizes, threads = key
    plain, masked, dropped = (kinds.get(kind, {}) for kind in ("plain", "masked", "dropout"))
    cells = (
        "GRU" if is_gru else "LSTM",
        "x".join(map(str, sizes)),
        str(threads),
        _ms(plain),
        _ratio(plain, plain, PLAIN),
        _ms(masked),
        _ratio(masked, masked, PLAIN),
        _ms(dropped),
        _ratio(dropped, dropped, LOOP),
        _ratio(dropped, plain, PLAIN),
    )
    return f"| {' | '.join(cells)} |\n"


def _ms(medians: Mapping[str, float]) -> str:
    return f"{medians[OURS]:.3g}" if OURS in medians else ""


def _ratio(ours: Mapping[str, float], others: Mapping[str, float], other: str) -> str:
    return f"{ours[OURS] / others[other]:.2f}" if OURS in ours and other in others else ""
