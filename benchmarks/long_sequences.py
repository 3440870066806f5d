"""Measure long sequences: one of 20,000 steps, and 200 of 1,000; two layers of 128 units.

    python benchmarks/long_sequences.py --threads 2 --json benchmarks/results/long-DATE.json

Bidirectional layers, concatenated: against ONNX Runtime (as ``k2t bench`` measures, parity first),
and for a quarter, a half and all of the steps, time and peak memory above input and output; with
two layers, the output of the first is beyond that. Layers of one direction in chunks, with carried
states, against the whole sequence: time, peak memory and the largest difference. Each has a process
of its own. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import keras2torch_birnn as k2t
from keras2torch_birnn.bench.case import GENERATION, Stack, half
from keras2torch_birnn.bench.contenders import OURS
from keras2torch_birnn.bench.measure import facts, measure
from keras2torch_birnn.conversion import build, reset_states
from keras2torch_birnn.schema.stored import layer_of_settings
from keras2torch_birnn.spec import Call, Graph, LayerSpec, ModelSpec, TensorRef

UNITS, LAYERS, CHUNK = 128, 2, 1000
SIZES = ((1, 20_000), (200, 1_000))  # batch, time
CELLS = {"lstm": k2t.BiLSTM, "gru": k2t.BiGRU}
PEER = "ONNX Runtime"
SHARES = (4, 2, 1)


def status(field: str) -> float:
    """Return a size of ``/proc/self/status`` in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def forget_peak() -> float:
    """Let the peak begin at the memory of now, and return that."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return status("VmRSS")


def peak() -> float:
    """Return the peak memory of this process, in MB."""
    return status("VmHWM")


def grow(cell: str, layers: int, batch: int, steps: int) -> dict[str, float]:
    """Run a stack; return its time and the memory that it took beyond its result, in MB."""
    module = CELLS[cell](UNITS, UNITS, layers, merge_mode="concat", batch_first=True).eval()
    x = torch.randn(batch, steps, UNITS)
    with torch.inference_mode():
        module(x[:, : CHUNK // 10])
        before = forget_peak()
        out, _ = module(x)
        above = peak() - before - out.numel() * 4e-6
        del out
        times = []
        for _ in range(3):
            start = time.perf_counter()
            module(x)
            times.append(1e3 * (time.perf_counter() - start))
    return {"ms": statistics.median(times), "above_mb": above}


def one_way(cell: str, *, stateful: bool) -> Any:
    """Build a model of layers of one direction, as a file would give it."""
    rng = np.random.default_rng(0)
    stack = Stack(cell, "concat", LAYERS, 1, 1, UNITS, UNITS)
    specs = []
    for number in range(LAYERS):
        one = half(stack, UNITS, rng, back=False)
        options = {**one.config, **one.semantics, "stateful": stateful}
        made = layer_of_settings(one.class_name, f"layer_{number}", options, weights=one.weights)
        specs.append(made)
    names = ["x", *(spec.name for spec in specs)]
    calls = [Call(after, 0, (TensorRef(before),)) for before, after in pairwise(names)]
    first = layer_of_settings("InputLayer", "x", {"dtype": "float32"}, weights={})
    graph = Graph(
        (first, *specs), (Call("x", 0, ()), *calls), (TensorRef("x"),), TensorRef(names[-1])
    )
    return build(ModelSpec(LayerSpec("Sequential", "chain", {}, graph=graph), GENERATION))


def stream(cell: str, _: int, batch: int, steps: int) -> dict[str, float]:
    """Run a sequence in chunks with carried states, and whole; return differences and memory."""
    whole, parts = (one_way(cell, stateful=stateful) for stateful in (False, True))
    x = torch.randn(batch, steps, UNITS)
    with torch.inference_mode():
        parts(x[:, :1])
        reset_states(parts)
        before = forget_peak()
        start = time.perf_counter()
        for chunk in x.split(CHUNK // 10, dim=1):
            parts(chunk)
        chunked = 1e3 * (time.perf_counter() - start)
        above = peak() - before
        reset_states(parts)
        start = time.perf_counter()
        wanted = whole(x)
        at_once = 1e3 * (time.perf_counter() - start)
        got = torch.cat([parts(chunk) for chunk in x.split(CHUNK // 10, dim=1)], dim=1)
    error = float((got - wanted).abs().max())
    return {"chunks_ms": chunked, "whole_ms": at_once, "above_mb": above, "difference": error}


WAYS = {"grow": grow, "stream": stream}


def in_a_process(threads: int, way: str, *case: Any) -> dict[str, float]:
    """Run one of ``WAYS`` in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(threads), "--case"]
    done = subprocess.run([*command, json.dumps([way, *case])], check=True, capture_output=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cell", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--size", nargs="+", type=int, default=[0, 1], help="of SIZES")
    parser.add_argument("--case", help="a way and its arguments as JSON, for this process")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.case:
        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        way, *case = json.loads(args.case)
        print(json.dumps(WAYS[way](*case)))
        return
    head = {**facts(args.threads, args.rounds), "torch": torch.__version__}
    print(", ".join(f"{key} {value}" for key, value in head.items()))
    rows: list[dict[str, Any]] = []

    def write() -> None:
        if args.json:
            text = json.dumps({**head, "rows": rows}, indent=1) + "\n"
            args.json.write_text(text, encoding="utf-8")

    for cell in args.cell:
        for batch, steps in (SIZES[index] for index in args.size):
            stack = Stack(cell, "concat", LAYERS, batch, steps, UNITS, UNITS)
            row = measure(stack, threads=args.threads, rounds=args.rounds, contenders=(OURS, PEER))
            print(
                stack.label, {t.contender: t.absent or f"{t.median_ms:.1f} ms" for t in row.timings}
            )
            found: dict[str, Any] = {"case": asdict(stack)}
            found["timings"] = [asdict(timing) for timing in row.timings]
            for layers in (1, LAYERS):
                found[f"growth_{layers}"] = [
                    {"steps": steps // share}
                    | in_a_process(args.threads, "grow", cell, layers, batch, steps // share)
                    for share in SHARES
                ]
                print(f"  {layers} layer(s)", found[f"growth_{layers}"])
            found["stream"] = in_a_process(args.threads, "stream", cell, LAYERS, batch, steps)
            print("  stream", found["stream"], flush=True)
            rows.append(found)
            write()


if __name__ == "__main__":
    main()
