"""The least time that a call can take on this machine."""

from __future__ import annotations

import time

import torch
from torch.nn import functional

from keras2torch_birnn.bench.case import CLASSES, Stack, lengths_of
from keras2torch_birnn.schema import CELL_GATES


def measure_peaks(threads: int) -> dict[str, float]:
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
    """Estimate the least time of a call from the peaks."""
    lengths = lengths_of(stack)
    share = 1.0 if lengths is None else float(lengths.sum()) / (stack.batch * stack.time)
    steps = stack.time if lengths is None else int(lengths.max())
    gates = CELL_GATES[CLASSES[stack.rnn]]
    read = 4 * stack.layers * 2 * gates * stack.units**2 * steps
    passes = 3 if stack.training else 1  # gradients: of what was multiplied, and of the weights
    compute = passes * stack.multiply_adds * share / best["multiply_adds"]
    return 1e3 * max(compute, read / best["cache_bytes"])
