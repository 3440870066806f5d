"""Make the tables of the kernel's cost model from its results: measured, and foreseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "cost-model-2026-11-27.json"
CLEAR = 0.9  # of the time of the kernel's own way; a faster way is shown from here on


def _rows() -> list[tuple[str, dict[str, Any]]]:
    """Return each shape in words, and its figures."""
    found: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    return [(_name(*row["shape"]), row) for row in found]


def _name(cell: str, batch: int, time: int, features: int, units: int, directions: int) -> str:
    one = ", one direction" if directions == 1 else ""
    return f"{cell}{one} | {batch}x{time}x{features}x{units}"


def measured() -> str:
    """Make a line for each shape: times of one and two threads, and the model's ratio to them."""
    lines = [
        "| one layer | batch x time x input x units | 1 thread, us | predicted / measured "
        "| 2 threads, us | predicted / measured |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name, row in _rows():
        cells = [
            part
            for n, spent in row["measured"].items()
            for part in (f"{1e6 * spent:,.0f}", f"{row['predicted'][n] / spent:.2f}")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def foreseen() -> str:
    """Make a line for each shape: the time of more threads, and a better way where there is one."""
    heads = ("4", "8", "16")
    lines = [
        "| one layer | batch x time x input x units | 1 thread, us "
        f"| {' | '.join(f'{n} threads: of that' for n in heads)} | better at 16 |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for name, row in _rows():
        alone = row["predicted"]["1"]
        cells = [f"{1e6 * alone:,.0f}", *(f"{row['predicted'][n] / alone:.2f}" for n in heads)]
        way, least = row["best"]["16"]
        better = f"{_words(*way)}: {least / alone:.2f}"
        cells.append(better if least < CLEAR * row["predicted"]["16"] else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _words(blocks: int, parts: int, together: bool) -> str:
    rows = f"{blocks} blocks of rows" if blocks > 1 else ""
    units = f"units in {parts} parts" if parts > 1 else ""
    in_turn = "" if together else "one direction after the other"
    return ", ".join(part for part in (rows, units, in_turn) if part) or "one thread"
