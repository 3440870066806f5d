"""Time the grid of engines: cells x merges x shapes, two layers, masked and not.

    python benchmarks/engine.py --threads 2 --json benchmarks/results/NAME.json

Every contender computes the same weights in a process of its own, idle while another is timed;
parity is asserted before anything is timed; the rounds go round robin (as ``k2t bench`` does).
The floor of a cell is what its multiply-adds take at the product's peak, or what reading the
recurrent weights once per step takes, whichever is longer; both are measured in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from keras2torch_birnn.bench.case import CLASSES, MERGES, Stack, lengths_of
from keras2torch_birnn.bench.contenders import CONTENDERS, OURS, PLAIN
from keras2torch_birnn.bench.measure import Row, facts, measure
from keras2torch_birnn.bench.report import write_results
from keras2torch_birnn.schema import CELL_GATES

# name -> --rnn, recurrent_activation, reset_after
CELLS: dict[str, tuple[str, str, bool]] = {
    "lstm": ("lstm", "sigmoid", True),
    "gru": ("gru", "sigmoid", True),
    "lstm-hard": ("lstm", "hard_sigmoid_0.2", True),
    "gru-before-hard": ("gru", "hard_sigmoid_0.2", False),
}
# batch, time, input, units
SHAPES = (
    (1, 64, 64, 64),
    (1, 200, 300, 256),
    (8, 100, 128, 128),
    (32, 128, 128, 128),
    (64, 256, 256, 256),
)
# No peers of ours. On the CPU they are timed only where they are asked for.
ASIDE = ("k2t folded", "naive loop")
PEERS = tuple(name for name in CONTENDERS if name not in (OURS, PLAIN, *ASIDE))


def peaks(threads: int) -> dict[str, float]:
    """Measure multiply-adds and bytes read from the cache, per second, at the best of many tries.

    The product is also tried as a convolution of single pixels, for which torch has oneDNN: MKL's
    own is slower on processors of another maker.
    """
    torch.set_num_threads(threads)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    out = torch.empty(1024, 1024)
    pixels = torch.randn(32, 1024, 16, 8).to(memory_format=torch.channels_last)
    weight = torch.randn(1024, 1024, 1, 1).to(memory_format=torch.channels_last)
    numbers = torch.randn(threads, 1 << 17)  # 512 KiB a thread: second-level cache
    best = {"multiply_adds": 0.0, "cache_bytes": 0.0}
    for _ in range(40):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        between = time.perf_counter()
        functional.conv2d(pixels, weight)
        rates = 1 / (between - start), 4 / (time.perf_counter() - between)
        best["multiply_adds"] = max(best["multiply_adds"], 1024**3 * max(rates))
        start = time.perf_counter()
        for _ in range(200):
            numbers.sum()
        spent = time.perf_counter() - start
        best["cache_bytes"] = max(best["cache_bytes"], 200 * 4 * numbers.numel() / spent)
    return best


def floor_ms(stack: Stack, best: dict[str, float]) -> float:
    """Estimate the least time that a call can take on this machine."""
    lengths = lengths_of(stack)
    share = 1.0 if lengths is None else float(lengths.sum()) / (stack.batch * stack.time)
    steps = stack.time if lengths is None else int(lengths.max())
    gates = CELL_GATES[CLASSES[stack.rnn]]
    read = 4 * stack.layers * 2 * gates * stack.units**2 * steps
    passes = 3 if stack.training else 1  # gradients: of what was multiplied, and of the weights
    compute = passes * stack.multiply_adds * share / best["multiply_adds"]
    return 1e3 * max(compute, read / best["cache_bytes"])


def best_peer(row: Row) -> tuple[str, float]:
    """Return the fastest of the peers that could run, and the ratio of k2t to it."""
    found = {name: row.ratio(OURS, name) for name in PEERS}
    there = {name: ratio for name, ratio in found.items() if ratio is not None}
    if not there:
        return "-", float("nan")
    name = max(there, key=lambda n: there[n])
    return name, there[name]


def main() -> None:
    """Measure, print, write after every cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--merge", nargs="+", default=list(MERGES), choices=MERGES)
    parser.add_argument("--cell", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--shapes", nargs="+", type=int, default=list(range(len(SHAPES))))
    parser.add_argument("--masked", choices=("no", "yes", "both"), default="both")
    parser.add_argument("--training", action="store_true", help="steps of training, not calls")
    parser.add_argument("--dropout", type=float, default=0.0, help="inside the layers, in training")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.dropout and not args.training:
        parser.error("--dropout needs --training: a call without it drops nothing")
    left_out = ASIDE if args.device == "cpu" else ("naive loop",)
    contenders = args.only or [c for c in CONTENDERS if c not in left_out]
    best = peaks(args.threads)
    head: dict[str, Any] = {**facts(args.threads, args.rounds), "peaks_per_second": best}
    print(", ".join(f"{key} {value}" for key, value in head.items()))
    print(f"{'':48} {'k2t':>9} {'/ torch':>8} {'/ best peer':>11}  {'/ floor':>7}")
    masks = {"no": (False,), "yes": (True,), "both": (False, True)}[args.masked]
    rows: list[Row] = []
    for shape, cell, merge, masked in itertools.product(args.shapes, args.cell, args.merge, masks):
        batch, steps, features, units = SHAPES[shape]
        rnn, gate, after = CELLS[cell]
        sizes = (batch, steps, features, units)
        stack = Stack(rnn, merge, 2, *sizes, gate, after, masked, args.training, args.dropout)
        row = measure(
            stack,
            device=args.device,
            threads=args.threads,
            rounds=args.rounds,
            contenders=contenders,
        )
        rows.append(row)
        ours = next(t for t in row.timings if t.contender == OURS)
        if ours.absent:
            sys.exit(f"{stack.label}: {ours.absent}")
        plain = row.ratio(OURS, PLAIN)
        name, ratio = best_peer(row)
        print(
            f"{stack.label:48} {ours.median_ms:6.2f} ms {plain or float('nan'):8.2f} {ratio:11.2f}"
            f"  {ours.median_ms / floor_ms(stack, best):7.2f}  {name}",
            flush=True,
        )
        if args.json:
            write_results(args.json, head, rows)
    ratios = [r for row in rows if (r := best_peer(row)[1]) == r]
    if ratios:
        print(f"median of k2t / best peer: {statistics.median(ratios):.2f}")
    if args.json:
        head["load_average_after"] = facts(args.threads, args.rounds)["load_average"]
        write_results(args.json, head, rows)


if __name__ == "__main__":
    main()
