"""Make the tables of several layers in one call and of long sequences from their results."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
SHORT, LONG = RESULTS / "stacks-2026-11-26.json", RESULTS / "long-2026-11-26.json"
OURS, PEER = "k2t", "ONNX Runtime"


def _rows(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return found


def short() -> str:
    """Make a line for each cell and size: layers at once and one by one."""
    layers = sorted({row["layers"] for row in _rows(SHORT)})
    heads = [f"{n} layer{'s' * (n > 1)}: at once, us | one by one | ratio" for n in layers]
    lines = [
        f"| `mul` | batch x time x input x units | {' | '.join(heads)} |",
        f"|---|---|{'--:|' * 3 * len(layers)}",
    ]
    found: dict[tuple[str, str], list[str]] = {}
    for row in _rows(SHORT):
        once, single = (statistics.median(row["times_us"][w]) for w in ("at once", "one by one"))
        key = (row["cell"].upper(), "x".join(map(str, row["shape"])))
        found.setdefault(key, []).extend((f"{once:.0f}", f"{single:.0f}", f"{once / single:.2f}"))
    lines += [f"| {' | '.join((*key, *cells))} |" for key, cells in found.items()]
    return "\n".join(lines) + "\n"


def long() -> str:
    """Make a line for each cell and size of long sequences."""
    lines = [
        "| two layers, `concat` | batch x time x input x units | k2t, ms | / ONNX Runtime | "
        "a half, a quarter of the steps | memory above, MB: one layer | two layers | "
        "one direction: whole, ms | in chunks of 100 | memory above, MB |",
        f"|---|---|{'--:|' * 8}",
    ]
    for row in _rows(LONG):
        times = {t["contender"]: statistics.median(t["times_ms"]) for t in row["timings"]}
        case, one, two, stream = row["case"], row["growth_1"], row["growth_2"], row["stream"]
        quarter, half, whole = (each["ms"] for each in two)
        cells = (
            case["rnn"].upper(),
            "x".join(str(case[k]) for k in ("batch", "time", "features", "units")),
            f"{times[OURS]:.0f}",
            f"{times[OURS] / times[PEER]:.2f}",
            f"{half / whole:.2f}, {quarter / whole:.2f}",
            f"{one[-1]['above_mb']:.2f}",
            f"{two[-1]['above_mb']:.0f}",
            f"{stream['whole_ms']:.0f}",
            f"{stream['chunks_ms']:.0f}",
            f"{stream['above_mb']:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
