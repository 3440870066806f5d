"""Measure what the native kernel costs, and how far ``cost_model.py`` is off.

    python benchmarks/measure_costs.py --json benchmarks/results/cost-model-DATE.json

A few constants of the machine are measured first, by runs of the kernel that are not among the
shapes of the table. Times are those of the fastest of many runs, as other work of the machine is
not modelled.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from cost_model import (
    GRU_AFTER,
    GRU_BEFORE,
    LSTM,
    SIMPLE_RNN,
    CellCosts,
    Constants,
    Shape,
    best_share,
    seconds,
)

from keras2torch_birnn.bench.measure import facts
from keras2torch_birnn.rnn.native.codes import GATES, KINDS
from keras2torch_birnn.rnn.native.library import RUN, instruction_set, library
from keras2torch_birnn.rnn.native.op import use_torch_threads
from keras2torch_birnn.rnn.native.packing import cached_pack

MEASURED, PREDICTED = (1, 2), (1, 2, 4, 8, 16)  # threads
TARGET = 0.15
SHAPES = (
    Shape(LSTM, 1, 64, 64, 64),
    Shape(LSTM, 1, 200, 300, 256),
    Shape(LSTM, 8, 100, 128, 128),
    Shape(LSTM, 32, 128, 128, 128),
    Shape(LSTM, 64, 64, 256, 256),
    Shape(LSTM, 1, 1000, 16, 32),
    Shape(LSTM, 3, 50, 100, 80),
    Shape(LSTM, 1, 100, 64, 192, 1),
    Shape(LSTM, 16, 64, 64, 96, 1),
    Shape(LSTM, 64, 50, 32, 64, 1),
    Shape(GRU_AFTER, 1, 64, 64, 64),
    Shape(GRU_AFTER, 1, 200, 300, 256),
    Shape(GRU_AFTER, 8, 100, 128, 128),
    Shape(GRU_AFTER, 32, 128, 128, 128),
    Shape(GRU_AFTER, 5, 60, 50, 100),
    Shape(GRU_AFTER, 1, 300, 40, 448, 1),
    Shape(GRU_BEFORE, 1, 100, 64, 128),
    Shape(GRU_BEFORE, 8, 100, 128, 128),
    Shape(SIMPLE_RNN, 1, 200, 64, 256),
    Shape(SIMPLE_RNN, 16, 100, 64, 64),
)


def prepare(shape: Shape, threads: int) -> Callable[[], Any]:
    """Return a call of the kernel with random weights."""
    draw = torch.Generator().manual_seed(0)
    rows, units, features = shape.gates * shape.units, shape.units, shape.features
    sizes = ((rows, features), (rows, units), (rows,), (rows,)) * shape.directions
    weights = [torch.randn(size, generator=draw) * 0.1 for size in sizes]
    packed = cached_pack(KINDS[shape.cell], weights, instruction_set())
    x = torch.randn(shape.batch, shape.time, features, generator=draw)
    out = torch.empty(shape.batch, shape.time, shape.directions * units)
    out_only = (out.data_ptr(), *[0] * 7)  # no final states, nothing kept, no masks of dropout
    places = (x.data_ptr(), shape.time * features, features, *[0] * 5, *out_only)
    tanh, sigmoid = 1, 2
    given = (tanh, sigmoid, 0.0, 0.0, 0, shape.batch, shape.time, threads, *places)
    call, run, isa = RUN.pack(packed.address, *given), library().k2t_run, instruction_set()
    alive = (weights, packed, x, out)
    return lambda: (run(isa, call), alive)


def fastest(call: Callable[[], Any], rounds: int) -> float:
    """Return the seconds of a call in the fastest round; short ones are repeated."""
    begun = time.perf_counter()
    call()
    count = max(3, int(0.004 / (time.perf_counter() - begun)))
    found = math.inf
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(count):
            call()
        found = min(found, (time.perf_counter() - begun) / count)
    return found


class Times:
    """Times of calls in seconds, each measured at its first use, and then as often as asked.

    known: times of an earlier run, as ``as_data`` returned them.
    """

    def __init__(self, rounds: int, known: Iterable[Sequence[Any]] = ()) -> None:
        self._rounds = rounds
        self._known: dict[tuple[Shape, int], float] = {
            (Shape(*shape), threads): spent for shape, threads, spent in known
        }

    def __call__(self, shape: Shape, threads: int = 1) -> float:
        """Return the time of the fastest call."""
        if (shape, threads) not in self._known:
            self._known[shape, threads] = fastest(prepare(shape, threads), self._rounds)
        return self._known[shape, threads]

    def as_data(self) -> list[tuple[Shape, int, float]]:
        """Return shape, threads and time of every call."""
        return [(*key, spent) for key, spent in self._known.items()]

    def measure_again(self) -> None:
        """Measure all of them once more: the machine may have been busy for seconds."""
        for (shape, threads), before in self._known.items():
            now = fastest(prepare(shape, threads), self._rounds)
            self._known[shape, threads] = min(before, now)


def measure_cell(cell: str, lanes: int, times: Times) -> CellCosts:
    """Measure the costs of a cell by runs of one direction on one thread."""

    def one(batch: int, steps: int, features: int, units: int) -> float:
        return times(Shape(cell, batch, steps, features, units, 1))

    gates = GATES[KINDS[cell]]
    # Two runs that differ in the features, and so in the product with the input.
    inputs = 96 * 8 * 384 * gates * 64 / (one(96, 8, 512, 64) - one(96, 8, 128, 64))
    # Runs of many rows that differ in the units, on which their time depends as a polynomial.
    sizes = (lanes, 4 * lanes, 12 * lanes)
    spent = [one(60, 60, 1, units) / 3600 for units in sizes]
    powers = torch.tensor([[1, n, gates * n * n] for n in sizes], dtype=torch.float64)
    solved = torch.linalg.solve(powers, torch.tensor(spent, dtype=torch.float64))
    row, unit, product = (max(1e-13, float(value)) for value in solved)
    steps = [
        (4.0 * gates * n * n, max(1e-9, one(1, 90, 1, n) - one(1, 30, 1, n)) / 60)
        for n in (lanes, 2 * lanes, 32, 48, 64, 96, 144, 208, 320, 512)
        if n > 2 * lanes or n <= 2 * lanes < 32
    ]
    return CellCosts(inputs, 1 / product, row, unit, tuple(steps))


def measure_constants(times: Times) -> Constants:
    """Measure the constants of this machine by runs of the kernel, on one thread."""
    lanes = {4: 16, 2: 8, 1: 4}[instruction_set()]
    cells = {cell: measure_cell(cell, lanes, times) for cell in KINDS}
    machine = Constants(lanes, cells, times(Shape(LSTM, 1, 1, 1, lanes, 1)))
    short = Shape(LSTM, 1, 2, 160, 128, 1)
    rest = times(short) - seconds(short, 1, machine)
    compared = 4 * short.gates * short.units * (short.features + short.units)
    return replace(machine, comparing=compared / rest)


def with_threads(machine: Constants, times: Times) -> Constants:
    """Measure what two threads cost: starts and barriers.

    Beside each other they are taken to be as fast as alone.
    """

    def left(shape: Shape) -> float:
        return max(0.0, times(shape, 2) - seconds(shape, 2, machine))

    start = left(Shape(LSTM, 1, 24, 48, 48))
    machine = replace(machine, pair=start, region=start)
    split = [Shape(LSTM, 1, 150, 64, units, 1) for units in (120, 168, 240)]
    return replace(machine, barrier=statistics.median(left(one) / one.time for one in split))


def main() -> None:
    """Measure constants and shapes, print both, and what the model says of more processors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=5, help="measure all of it again so often")
    parser.add_argument("--known", type=Path, help="JSON of an earlier run on this machine")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    use_torch_threads()
    known = json.loads(args.known.read_text(encoding="utf-8"))["times"] if args.known else ()
    times = Times(args.rounds, known)
    for turn in range(args.passes + 1):
        if turn:
            times.measure_again()
        machine = with_threads(measure_constants(times), times)
        measured = {shape: {n: times(shape, n) for n in MEASURED} for shape in SHAPES}
    head = facts(2, args.rounds)
    print(head, json.dumps(asdict(machine)), sep="\n")
    rows = []
    for shape, found in measured.items():
        predicted = {n: seconds(shape, n, machine) for n in PREDICTED}
        best = {n: best_share(shape, n, machine) for n in PREDICTED}
        rows.append({"shape": shape, "measured": found, "predicted": predicted, "best": best})
        shown = [f"{1e6 * t:10.1f} {predicted[n] / t:5.2f}" for n, t in found.items()]
        print(f"{shape.cell:12} {shape.label:28} {' '.join(shown)}")
    for n in MEASURED:
        off = [abs(seconds(shape, n, machine) / found[n] - 1) for shape, found in measured.items()]
        inside, median = sum(one <= TARGET for one in off), statistics.median(off)
        print(f"{n} threads: {inside} of {len(off)} within 15 %, median {median:.2f} off")
    if args.json:
        data = {**head, "constants": asdict(machine), "rows": rows, "times": times.as_data()}
        args.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
