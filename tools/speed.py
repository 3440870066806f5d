"""Make the tables of speed from the raw results of ``benchmarks/engine.py``.

A case that is in several files is taken from the last of them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Oldest first.
FILES = (
    "engine-2026-11-25.json",
    "engine-training-2026-11-25.json",
    "engine-2026-11-28.json",
)
OURS, PLAIN = "k2t", "torch per layer"
# Ours, written by hand with torch alone, or not meant to be fast.
NO_PEERS = (OURS, PLAIN, "k2t folded", "naive loop")
SHORT = {"Keras train_on_batch": "Keras", "Keras train_on_batch XLA": "Keras XLA"}
NAMES = {
    ("lstm", "sigmoid", True): "LSTM",
    ("gru", "sigmoid", True): "GRU",
    ("lstm", "hard_sigmoid_0.2", True): "LSTM, hard_sigmoid",
    ("gru", "hard_sigmoid_0.2", False): "GRU, reset before, hard_sigmoid",
}


class Cell(NamedTuple):
    """Case: k2t's median in milliseconds, and its ratios to torch and to the best other."""

    ms: float
    torch: float | None
    best: float | None
    name: str


Key = tuple[Any, ...]


def cells() -> dict[Key, Cell]:
    """Read all results, by cell, merge, sizes, masked or not, training or not."""
    found: dict[Key, Cell] = {}
    for file in FILES:
        for row in json.loads((RESULTS / file).read_text(encoding="utf-8"))["rows"]:
            case = row["case"]
            kind = NAMES[case["rnn"], case["recurrent_activation"], case["reset_after"]]
            sizes = tuple(case[k] for k in ("batch", "time", "features", "units"))
            key = (kind, case["merge"], sizes, case["masked"], case.get("training", False))
            found[key] = _cell(row["timings"])
    return found


def _cell(timings: Sequence[dict[str, Any]]) -> Cell:
    medians = {t["contender"]: t["median_ms"] for t in timings if t["median_ms"]}
    ours = medians[OURS]
    peers = {name: ms for name, ms in medians.items() if name not in NO_PEERS}
    best = min(peers, key=lambda name: peers[name], default="")
    return Cell(
        ours,
        ours / medians[PLAIN] if PLAIN in medians else None,
        ours / peers[best] if best else None,
        SHORT.get(best, best),
    )


def table(*, training: bool) -> str:
    """Make a line for each cell and size with merge ``mul``, then a summary of all cases."""
    all_cells = {key: cell for key, cell in cells().items() if key[4] is training}
    lines = [
        "| two layers, `mul` | batch x time x input x units | k2t, ms | / torch | / best other "
        "| same, padded to half: ms | / torch | / best other |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    shown = sorted({key[2] for key in all_cells})
    for kind in NAMES.values():
        for sizes in shown:
            pair = [
                all_cells.get((kind, "mul", sizes, masked, training)) for masked in (False, True)
            ]
            if pair[0] is not None:
                row = [
                    kind,
                    "x".join(map(str, sizes)),
                    *(text for one in pair for text in _shown(one)),
                ]
                lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", _summary(all_cells)]) + "\n"


def _shown(cell: Cell | None) -> tuple[str, str, str]:
    if cell is None:
        return "", "", ""
    digits = f"{cell.ms:.2f}" if cell.ms < 9.995 else f"{cell.ms:.3g}"
    torch = "" if cell.torch is None else f"{cell.torch:.2f}"
    return digits, torch, "" if cell.best is None else f"{cell.best:.2f} {cell.name}"


def _summary(found: dict[Key, Cell]) -> str:
    ratios = [cell.best for cell in found.values() if cell.best is not None]
    small = [c.best for key, c in found.items() if c.best is not None and key[2][0] in (1, 8)]
    merges = sorted({key[1] for key in found})
    return (
        f"Measured: {len(ratios)} cases ({', '.join(merges)}), "
        f"{sum(r <= 1 for r in ratios)} of them at least as fast as the best other, "
        f"median {statistics.median(ratios):.2f}; of batch 1 and 8: {statistics.median(small):.2f}."
    )
