"""Choose between ways to compute the same by their times, where nobody could measure before."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence

import torch

ROUNDS = 3
# What was computed -> the least seconds of each way, for `make gpu`.
MEASURED: dict[Hashable, tuple[float, ...]] = {}


def find_fastest(what: Hashable, ways: Sequence[Callable[[], object]], device: torch.device) -> int:
    """Return the place of the way that takes the least time."""
    if len(ways) == 1:
        return 0
    MEASURED[what] = times = tuple(min(_measure(way, device)) for way in ways)
    return times.index(min(times))


def _measure(way: Callable[[], object], device: torch.device) -> list[float]:
    """Return the seconds of some rounds, behind one in which kernels are compiled."""
    way()
    found = []
    for _ in range(ROUNDS):
        _wait(device)
        begun = time.perf_counter()
        way()
        _wait(device)
        found.append(time.perf_counter() - begun)
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":  # (not for all streams: on another a graph may be captured)
        torch.cuda.current_stream(device).synchronize()
