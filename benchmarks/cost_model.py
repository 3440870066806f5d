"""Predict the time of the native kernel from products, bytes and barriers, and measure it.

    python benchmarks/cost_model.py --json benchmarks/results/cost-model-DATE.json

A few constants of the machine are measured first, by runs of the kernel that are not among the
shapes of the table. ``seconds`` is the model: a pure function of shape, threads and constants.
Times are those of the fastest of many runs, as other work of the machine is not modelled.

B batch, T time, F features, H units, G gates, D directions. Weights are float32.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from keras2torch_birnn.bench.measure import facts
from keras2torch_birnn.rnn.native.library import (
    GATES,
    INSTRUCTION_SETS,
    KINDS,
    RUN,
    instruction_set,
    library,
)
from keras2torch_birnn.rnn.native.op import use_torch_threads
from keras2torch_birnn.rnn.native.packing import cached_pack

# ---- what is computed ---------------------------------------------------------------------------


class Shape(NamedTuple):
    """One layer and its input. cell: a key of ``KINDS``."""

    cell: str
    batch: int
    time: int
    features: int
    units: int
    directions: int = 2

    @property
    def gates(self) -> int:
        """Return G."""
        return GATES[KINDS[self.cell]]

    @property
    def label(self) -> str:
        """Return the sizes in one word."""
        return "x".join(map(str, self[1:5])) + (" one direction" if self.directions == 1 else "")


MEASURED, PREDICTED = (1, 2), (1, 2, 4, 8, 16)  # threads
TARGET = 0.15
CELLS = tuple(KINDS)  # LSTM, GRU after, GRU before, SimpleRNN
_LSTM, _AFTER, _BEFORE, _SIMPLE = sorted(KINDS, key=KINDS.__getitem__)
SHAPES = (
    Shape(_LSTM, 1, 64, 64, 64),
    Shape(_LSTM, 1, 200, 300, 256),
    Shape(_LSTM, 8, 100, 128, 128),
    Shape(_LSTM, 32, 128, 128, 128),
    Shape(_LSTM, 64, 64, 256, 256),
    Shape(_LSTM, 1, 1000, 16, 32),
    Shape(_LSTM, 3, 50, 100, 80),
    Shape(_LSTM, 1, 100, 64, 192, 1),
    Shape(_LSTM, 16, 64, 64, 96, 1),
    Shape(_LSTM, 64, 50, 32, 64, 1),
    Shape(_AFTER, 1, 64, 64, 64),
    Shape(_AFTER, 1, 200, 300, 256),
    Shape(_AFTER, 8, 100, 128, 128),
    Shape(_AFTER, 32, 128, 128, 128),
    Shape(_AFTER, 5, 60, 50, 100),
    Shape(_AFTER, 1, 300, 40, 448, 1),
    Shape(_BEFORE, 1, 100, 64, 128),
    Shape(_BEFORE, 8, 100, 128, 128),
    Shape(_SIMPLE, 1, 200, 64, 256),
    Shape(_SIMPLE, 16, 100, 64, 64),
)


# ---- the model ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellCosts:
    """Costs of a cell: of one row, and of rows that share each weight that is read.

    inputs, products: multiply-adds per second with the input and with the state. row, unit: seconds
    of a row's step, and of each of its units, beside the products. steps: (bytes of recurrent
    weights, seconds of a step of a single row), rising.
    """

    inputs: float
    products: float
    row: float
    unit: float
    steps: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Constants:
    """Constants of a machine; seconds, and bytes per second.

    lanes: floats of a vector. comparing: bytes of weights that are compared with those packed, and
    then are to be fetched anew. pair, region: the start of two threads and of more. barrier: a wait
    of two threads for each other.
    """

    lanes: int
    cells: Mapping[str, CellCosts]
    call: float
    comparing: float = math.inf
    pair: float = 0.0
    region: float = 0.0
    barrier: float = 0.0


class Share(NamedTuple):
    """How a call is shared out: in blocks of rows, and the units of each in parts.

    The kernel has parts for a single row only.

    together: whether both directions run at the same time.
    """

    blocks: int
    parts: int = 1
    together: bool = True


# Of api.cpp: work in multiply-adds per gate, and recurrent weights.
TINY, SMALL, MIDDLE = 1e5, 1.5e6, 5e6
SPLIT_WEIGHTS, CACHE_WEIGHTS, MOST_ROWS = 3e4, 4.2e5, 64


def hands(shape: Shape, threads: int) -> int:
    """Return how many threads may work on a call, one of many in close succession."""
    work = shape.batch * shape.time * shape.directions * shape.units
    work *= shape.units + shape.features
    if threads < 2 or work < TINY:
        return 1
    return 2 if work < SMALL else threads


def share_out(shape: Shape, threads: int) -> Share:
    """Share a call out as the kernel does."""
    most_hands, directions = hands(shape, threads), shape.directions
    weights = shape.gates * shape.units**2
    if shape.batch == 1 and most_hands >= 2:
        most = max(2, int(weights / SPLIT_WEIGHTS)) if weights >= SPLIT_WEIGHTS else 1
        if most_hands >= 2 * directions and most >= 2:
            return Share(1, min(most_hands // directions, most))
        if weights >= CACHE_WEIGHTS:
            return Share(1, min(most_hands, most), together=False)
    wanted = max(-(-most_hands // directions), -(-shape.batch // MOST_ROWS))
    return Share(min(wanted, shape.batch))


def interpolate(known: Sequence[tuple[float, float]], at: float) -> float:
    """Return a value between known ones, which rise with their place, as a power of the place."""
    pairs = list(pairwise(known))
    (low, small), (high, large) = next((p for p in pairs if at <= p[1][0]), pairs[-1])
    return small * math.exp(math.log(large / small) * math.log(at / low) / math.log(high / low))


def width_of(shape: Shape, parts: int, machine: Constants) -> float:
    """Return the units of one of some parts; those of a vector are computed together."""
    return -(-shape.units // machine.lanes) * machine.lanes / parts


def step_seconds(shape: Shape, rows: int, parts: int, machine: Constants) -> float:
    """Return the time of one step of some rows of a direction, of one of `parts` of its units.

    Of one row it is that of reading the weights; of many that of the products and the equations.
    """
    cell, width = machine.cells[shape.cell], width_of(shape, parts, machine)
    weights = shape.gates * width * shape.units
    single = interpolate(cell.steps, 4 * weights)
    many = rows * (cell.row + cell.unit * width + weights / cell.products)
    return single if rows == 1 else max(single, many)


def task_seconds(shape: Shape, rows: int, parts: int, machine: Constants) -> float:
    """Return the time of a task: a direction of some rows, or one of `parts` of its units."""
    inputs = shape.gates * width_of(shape, parts, machine) * shape.features
    compared = 4 * shape.gates * shape.units * (shape.features + shape.units) / min(parts, 2)
    product = shape.time * rows * inputs / machine.cells[shape.cell].inputs
    steps = shape.time * step_seconds(shape, rows, parts, machine)
    return compared / machine.comparing + product + steps


def barrier_seconds(parts: int, machine: Constants) -> float:
    """Return the time of a barrier. Its counter goes from processor to processor."""
    return machine.barrier * parts / 2 if parts > 1 else 0.0


def shared_seconds(shape: Shape, share: Share, threads: int, machine: Constants) -> float:
    """Return the predicted time of a call that is shared out in this way."""
    directions = shape.directions
    if share.parts > 1:
        turns = 1 if share.together else directions
        used = share.blocks * share.parts * (directions if share.together else 1)
        phases = 2 if shape.cell == _BEFORE else 1
        rows = -(-shape.batch // share.blocks)
        one = task_seconds(shape, rows, share.parts, machine)
        waits = shape.time * phases * barrier_seconds(share.parts, machine)
        longest = turns * (one + waits)
    else:
        used = min(threads, share.blocks * directions)
        sizes = [
            shape.batch // share.blocks + (n < shape.batch % share.blocks)
            for n in range(share.blocks)
            for _ in range(directions)
        ]
        busy = [0.0] * used
        for number in sizes:  # each thread takes the next task
            busy[busy.index(min(busy))] += task_seconds(shape, number, 1, machine)
        longest = max(busy)
    start = 0.0 if used < 2 else machine.pair if used == 2 else machine.region
    return machine.call + start + longest


def seconds(shape: Shape, threads: int, machine: Constants) -> float:
    """Return the predicted time of a call of the kernel."""
    return shared_seconds(shape, share_out(shape, threads), threads, machine)


def best_share(shape: Shape, threads: int, machine: Constants) -> tuple[Share, float]:
    """Return the fastest way to share out, of all that there are, and its time."""
    blocks = range(1, min(threads, shape.batch) + 1)
    ways = [Share(n) for n in blocks]
    ways += [
        Share(n, parts)
        for n in blocks
        for parts in range(2, threads // shape.directions // n + 1)
        if parts * machine.lanes <= shape.units
    ]
    ways += [Share(1, n, together=False) for n in range(2, threads + 1) if shape.batch == 1]
    found = {way: shared_seconds(shape, way, threads, machine) for way in ways}
    best = min(found, key=found.__getitem__)
    return best, found[best]


# ---- measurements -------------------------------------------------------------------------------


def prepare(shape: Shape, threads: int) -> Callable[[], Any]:
    """Return a call of the kernel with random weights."""
    draw = torch.Generator().manual_seed(0)
    rows, units, features = shape.gates * shape.units, shape.units, shape.features
    sizes = ((rows, features), (rows, units), (rows,), (rows,)) * shape.directions
    weights = [torch.randn(size, generator=draw) * 0.1 for size in sizes]
    packed = cached_pack(KINDS[shape.cell], weights, instruction_set())
    x = torch.randn(shape.batch, shape.time, features, generator=draw)
    out = torch.empty(shape.batch, shape.time, shape.directions * units)
    places = (x.data_ptr(), shape.time * features, features, 0, 0, 0, 0, 0, out.data_ptr(), 0, 0, 0)
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
        (4.0 * gates * n * n, (one(1, 90, 1, n) - one(1, 30, 1, n)) / 60)
        for n in (lanes, 2 * lanes, 32, 48, 64, 96, 144, 208, 320, 512)
        if n > 2 * lanes or n <= 2 * lanes < 32
    ]
    return CellCosts(inputs, 1 / product, row, unit, tuple(steps))


def measure_constants(times: Times) -> Constants:
    """Measure the constants of this machine by runs of the kernel, on one thread."""
    lanes = {4: 16, 2: 8, 1: 4}[instruction_set()]
    cells = {cell: measure_cell(cell, lanes, times) for cell in CELLS}
    machine = Constants(lanes, cells, times(Shape(_LSTM, 1, 1, 1, lanes, 1)))
    short = Shape(_LSTM, 1, 2, 160, 128, 1)
    rest = times(short) - seconds(short, 1, machine)
    compared = 4 * short.gates * short.units * (short.features + short.units)
    return replace(machine, comparing=compared / rest)


def with_threads(machine: Constants, times: Times) -> Constants:
    """Measure what two threads cost: starts and barriers.

    Beside each other they are taken to be as fast as alone.
    """

    def left(shape: Shape) -> float:
        return max(0.0, times(shape, 2) - seconds(shape, 2, machine))

    start = left(Shape(_LSTM, 1, 24, 48, 48))
    machine = replace(machine, pair=start, region=start)
    split = [Shape(_LSTM, 1, 150, 64, units, 1) for units in (120, 168, 240)]
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
    head = {**facts(2, args.rounds), "instruction_set": _name_of(instruction_set())}
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


def _name_of(bit: int) -> str:
    return next(name for name, one in INSTRUCTION_SETS.items() if one == bit)


if __name__ == "__main__":
    main()
