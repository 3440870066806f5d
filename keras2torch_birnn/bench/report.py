"""Reports of timings: table, JSON, plot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from keras2torch_birnn.bench.contenders import OURS
from keras2torch_birnn.bench.measure import Row, Timing
from keras2torch_birnn.errors import UsageError


def table(rows: Sequence[Row]) -> list[str]:
    """Format one block per case: medians, spread, ratio to k2t, versions."""
    lines = []
    for row in rows:
        lines.append(f"{row.case.label}, {row.device}")
        lines.append(f"  {'':20} {'median':>10} {'fastest':>10} {'slowest':>10} {'k2t takes':>10}")
        lines += [f"  {_line(row, timing)}" for timing in row.timings]
    return lines


def _line(row: Row, timing: Timing) -> str:
    if timing.absent:
        return f"{timing.contender:20} {timing.absent}"
    times = timing.times_ms
    ratio = row.ratio(OURS, timing.contender)
    shown = "" if ratio is None or timing.contender == OURS else f"{ratio:.2f}x"
    return (
        f"{timing.contender:20} {timing.median_ms:7.2f} ms {min(times):7.2f} ms "
        f"{max(times):7.2f} ms {shown:>10}  {timing.runs}, {timing.error:.0e} off"
    )


def as_json(facts: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """Return all measurements as JSON."""
    found: list[dict[str, Any]] = [
        {
            "case": {"kind": type(row.case).__name__, **asdict(row.case)},
            "device": row.device,
            "timings": [
                # JSON has no NaN.
                {**asdict(t), "error": t.error if t.times_ms else None, "median_ms": _median(t)}
                for t in row.timings
            ],
        }
        for row in rows
    ]
    return json.dumps({**facts, "rows": found}, indent=1) + "\n"


def _median(timing: Timing) -> float | None:
    return timing.median_ms if timing.times_ms else None


def plot(rows: Sequence[Row], file: Path) -> None:
    """Draw bars of the medians, one group per case, on a logarithmic axis.

    Raises:
        UsageError: matplotlib is not installed, or the suffix is none it can write.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "--plot needs matplotlib", "pip install 'keras2torch_birnn[bench]'"
        ) from None
    if file.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot {file.name}: .png or .svg is expected")
    names = list(dict.fromkeys(t.contender for row in rows for t in row.timings if t.times_ms))
    figure = Figure(figsize=(9, 1.2 + 0.24 * sum(_present(row) + 1 for row in rows)))
    axes = figure.add_subplot()
    at, ticks = 0.0, []
    for row in rows:
        present = [t for t in row.timings if t.times_ms]
        ticks.append((at + (len(present) - 1) / 2, f"{row.case.label}\n{row.device}"))
        for timing in present:
            color = f"C{names.index(timing.contender)}"
            axes.barh(at, timing.median_ms, color=color, height=0.85)
            axes.text(timing.median_ms, at, f" {timing.median_ms:.2f}", va="center", fontsize=7)
            at += 1
        at += 1
    for index, name in enumerate(names):
        axes.barh([0], [0], color=f"C{index}", label=name)
    axes.set_xscale("log")
    axes.set_yticks([y for y, _ in ticks], [label for _, label in ticks], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("milliseconds for one call, median (shorter is better)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, fontsize=8, frameon=False)
    figure.savefig(file, bbox_inches="tight", dpi=150)


def _present(row: Row) -> int:
    return sum(bool(t.times_ms) for t in row.timings)
