"""Make the tables of layers against the floor, and of the kernel before and after a change."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
LAYERS, PAIRS = RESULTS / "layers-2026-11-27.json", RESULTS / "kernel-pairs-2026-11-27.json"
OURS, PEERS = "k2t", ("ONNX Runtime", "OpenVINO")
HEAD = (
    "| two layers | batch x time x input x units | threads | k2t, ms | of the floor "
    f"| {' | '.join(f'/ {name}' for name in PEERS)} |\n"
    "|---|---|--:|--:|--:|--:|--:|\n"
)


def table() -> str:
    """Make a line for each case: the median, and its ratio to the floor and to each peer."""
    lines = [HEAD]
    for row in json.loads(LAYERS.read_text(encoding="utf-8"))["rows"]:
        case = row["case"]
        sizes = "x".join(str(case[key]) for key in ("batch", "time", "features", "units"))
        medians = {t["contender"]: t["median_ms"] for t in row["timings"] if t["median_ms"]}
        ours = medians[OURS]
        ratios = [f"{ours / medians[name]:.2f}" if name in medians else "" for name in PEERS]
        lines.append(
            f"| {case['rnn'].upper()}, `{case['merge']}` | {sizes} | {row['threads']} "
            f"| {ours:.3g} | {ours / row['floor_ms']:.2f} | {' | '.join(ratios)} |\n"
        )
    return "".join(lines)


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
