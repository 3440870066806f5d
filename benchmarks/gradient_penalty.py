"""Time a step with a gradient penalty: a second gradient, by k2t and by torch's own layer.

    python benchmarks/gradient_penalty.py --threads 1 --json benchmarks/results/penalty-DATE.json

One bidirectional layer, merged by concat. A step is the output, the gradient of the sum of its
squares by the input, in a graph, and the gradients of the sum of its squares by everything. Both
have the same weights and a process of their own, idle while the other is timed; their gradients are
compared before anything is timed, and they take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import keras2torch_birnn as k2t
from keras2torch_birnn.bench.measure import facts

CONTENDERS: dict[str, dict[str, Any]] = {
    "k2t": {"lstm": k2t.BiLSTM, "gru": k2t.BiGRU},
    "torch": {"lstm": nn.LSTM, "gru": nn.GRU},
}
# batch, time, input, units
SHAPES = (
    (1, 64, 64, 64),
    (1, 200, 300, 256),
    (8, 100, 128, 128),
    (32, 64, 64, 64),
    (32, 128, 128, 128),
    (64, 64, 256, 256),
)
ALIKE = 1e-5  # of the largest value


def step(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the gradients of the penalty by the input and the parameters."""
    outputs = module(x)[0]
    (gradient,) = torch.autograd.grad(outputs.square().sum(), x, create_graph=True)
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    return list(torch.autograd.grad(gradient.square().sum(), wanted, allow_unused=True))


def work(contender: str, cell: str, shape: tuple[int, ...], folder: Path) -> None:
    """Be the process of a contender: write the gradients, then answer with milliseconds."""
    batch, steps, features, units = shape
    torch.manual_seed(0)
    weights = nn.LSTM if cell == "lstm" else nn.GRU
    given = weights(features, units, bidirectional=True, batch_first=True).state_dict()
    options = {"batch_first": True}
    module = CONTENDERS[contender][cell](
        features, units, **options, **({} if contender == "k2t" else {"bidirectional": True})
    )
    module.load_state_dict(given)
    x = torch.randn(batch, steps, features).requires_grad_()
    names = ["x", *(name for name, p in module.named_parameters() if p.requires_grad)]
    found = dict(zip(names, step(module.train(), x), strict=True))
    torch.save({k: v for k, v in found.items() if v is not None}, folder / f"{contender}.pt")
    print("ready", flush=True)
    for _ in sys.stdin:
        begun, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < 0.05 or not count:
            step(module, x)
            count += 1
        print(1e3 * spent / count, flush=True)


def compare(folder: Path) -> float:
    """Return the largest difference, of the largest value of its tensor; refuse a large one."""
    ours, theirs = (torch.load(folder / f"{name}.pt", weights_only=True) for name in CONTENDERS)
    shared = ours.keys() & theirs.keys()
    assert {"x", "weight_hh_l0", "weight_ih_l0_reverse"} <= shared
    worst = max(
        float((ours[k] - theirs[k]).abs().max() / theirs[k].abs().max().clamp(min=1e-30))
        for k in shared
    )
    assert worst < ALIKE, worst
    return worst


def measure(cell: str, shape: tuple[int, ...], threads: int, rounds: int) -> dict[str, Any]:
    """Measure one case."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, __file__, "--threads", str(threads), "--worker"]
        workers = {
            contender: subprocess.Popen(
                [*command, json.dumps([contender, cell, shape, name])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )
            for contender in CONTENDERS
        }

        def ask(contender: str, text: str) -> str:
            worker = workers[contender]
            if worker.stdin is None or worker.stdout is None:
                raise TypeError("a worker has pipes")
            worker.stdin.write(text)
            worker.stdin.flush()
            return worker.stdout.readline()

        for contender in workers:
            ask(contender, "")
        difference = compare(Path(name))
        times: dict[str, list[float]] = {contender: [] for contender in workers}
        for number in range(rounds):
            for contender in list(workers)[:: 1 if number % 2 else -1]:
                times[contender].append(float(ask(contender, "\n")))
        for worker in workers.values():
            worker.communicate()
    return {"cell": cell, "shape": shape, "threads": threads, "difference": difference} | {
        "times_ms": times
    }


def main() -> None:
    """Measure, print, write after every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker:
        contender, cell, shape, folder = json.loads(args.worker)
        return work(contender, cell, shape, Path(folder))
    head = {**facts(args.threads, args.rounds), "torch": torch.__version__}
    rows: list[dict[str, Any]] = []
    if args.json and args.json.exists():  # measured in parts; the same case again replaces the old
        rows = json.loads(args.json.read_text(encoding="utf-8"))["rows"]
    print(", ".join(f"{key} {value}" for key, value in head.items()))
    for shape, cell in product(SHAPES, ("lstm", "gru")):
        row = measure(cell, shape, args.threads, args.rounds)
        keys = ("cell", "threads")
        same = [r for r in rows if [*r["shape"]] == [*shape] and all(r[k] == row[k] for k in keys)]
        rows = [r for r in rows if r not in same] + [row]
        ours, theirs = (statistics.median(row["times_ms"][name]) for name in CONTENDERS)
        size = "x".join(map(str, shape))
        print(f"{cell:5} {size:15} {ours:8.2f} ms {ours / theirs:5.2f} of torch", flush=True)
        if args.json:
            args.json.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n", "utf-8")
    return None


if __name__ == "__main__":
    main()
