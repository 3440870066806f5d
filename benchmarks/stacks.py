"""Time short calls of several layers: all in one call of the kernel, and one by one.

    python benchmarks/stacks.py --threads 2 --json benchmarks/results/stacks-DATE.json

Each case has a process of its own. Both ways compute the same bits, which is asserted before
anything is timed, and take turns. Medians of the rounds, in microseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import keras2torch_birnn as k2t
from keras2torch_birnn.bench.measure import facts
from keras2torch_birnn.rnn.at_once import AtOnce

CLASSES = {"lstm": k2t.BiLSTM, "gru": k2t.BiGRU}
# batch, time, input, units
SHAPES = ((1, 16, 32, 32), (1, 64, 64, 64), (1, 100, 128, 128), (8, 50, 64, 64))
LAYERS = (1, 2, 4)
CALLS = 100  # of a round


def flat(result: Any) -> list[Tensor]:
    """Return the tensors of a nested tuple."""
    return [result] if isinstance(result, Tensor) else [t for part in result for t in flat(part)]


def timed(call: Callable[[], Any]) -> float:
    """Return microseconds of one call."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS * 1e6


def measure(cell: str, layers: int, shape: tuple[int, ...], threads: int, rounds: int) -> Any:
    """Time both ways in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    batch, steps, features, units = shape
    module = CLASSES[cell](features, units, layers, merge_mode="mul", batch_first=True).eval()
    x = torch.randn(batch, steps, features)
    replaced: Any = AtOnce
    at_once, one_by_one = AtOnce.run, lambda *_: None
    times: dict[str, list[float]] = {"at once": [], "one by one": []}
    with torch.inference_mode():
        wanted: list[Tensor] = []
        for number in range(-1, rounds):
            for name, run in (("at once", at_once), ("one by one", one_by_one)):
                replaced.run = run
                if number >= 0:
                    times[name].append(timed(lambda: module(x)))
                    continue
                found = flat(module(x))
                wanted = wanted or found
                assert all(map(torch.equal, found, wanted))
    return times


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--case", help="a case as JSON: measure it in this process")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.case:
        cell, layers, shape = json.loads(args.case)
        print(json.dumps(measure(cell, layers, shape, args.threads, args.rounds)))
        return
    head = {**facts(args.threads, args.rounds), "torch": torch.__version__}
    print(", ".join(f"{key} {value}" for key, value in head.items()))
    rows = []
    for shape, cell, layers in product(SHAPES, CLASSES, LAYERS):
        case = json.dumps([cell, layers, shape])
        command = [sys.executable, __file__, "--case", case]
        command += ["--threads", str(args.threads), "--rounds", str(args.rounds)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        rows.append({"cell": cell, "layers": layers, "shape": shape, "times_us": found})
        once, single = (statistics.median(found[name]) for name in ("at once", "one by one"))
        size = "x".join(map(str, shape))
        print(f"{cell:5} {layers} {size:14} {once:8.1f} {single:8.1f} {once / single:5.2f}")
    if args.json:
        args.json.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
