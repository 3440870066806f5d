"""The table of measured times in the documentation: one line for a processor and a benchmark.

It sums up the results that ``python -m benchmarks NAME --record`` wrote to ``benchmarks/results``,
which have every case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

from keras2torch_birnn.cli.bench.contenders import OURS, PLAIN

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
# By other means than a user's, or with other numbers: no peers.
NO_PEERS = (PLAIN, "naive loop", "torch.compile", "torch quantize_dynamic")
REDUCED = ("int8", "bfloat16", "default")
HEAD = (
    "| processor | benchmark | threads | cases | of the best other: median | most "
    "| of torch layer by layer: median | most |\n|---|---|--:|--:|--:|--:|--:|--:|\n"
)


def times_table() -> str:
    """Write what k2t takes of the time of others, float32, for each kind of processor."""
    return HEAD + "".join(line for file in sorted(RESULTS.glob("*.json")) for line in _lines(file))


def _lines(file: Path) -> Iterator[str]:
    found = json.loads(file.read_text("utf-8"))
    kinds: dict[tuple[str, int], list[Mapping[str, float]]] = {}
    for row in found["rows"]:
        kinds.setdefault((row["benchmark"], row["threads"]), []).append(row["ms"])
    for (benchmark, threads), rows in sorted(kinds.items()):
        best = [ms[OURS] / min(peers) for ms in rows if OURS in ms and (peers := _peers(ms))]
        by_hand = [ms[OURS] / ms[PLAIN] for ms in rows if OURS in ms and PLAIN in ms]
        cells = (*_sum_up(best), *_sum_up(by_hand))
        name = f"{found['processor']}, {found['instructions']}"
        yield f"| {name} | {benchmark} | {threads} | {len(rows)} | {' | '.join(cells)} |\n"


def _peers(ms: Mapping[str, float]) -> list[float]:
    """Return the times of those that are neither ours nor written by hand nor less exact."""
    return [
        one
        for name, one in ms.items()
        if name not in NO_PEERS and "k2t" not in name and not name.endswith(REDUCED)
    ]


def _sum_up(ratios: list[float]) -> tuple[str, str]:
    return (f"{median(ratios):.2f}", f"{max(ratios):.2f}") if ratios else ("", "")
