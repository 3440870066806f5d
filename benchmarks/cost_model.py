"""Predict the time of the native kernel from products, bytes and barriers: a pure function.

``measure_costs.py`` measures the constants of a machine, and how far the prediction is off.

B batch, T time, F features, H units, G gates, D directions. Weights are float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from keras2torch_birnn.rnn.native.codes import GATES, KINDS


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


LSTM, GRU_AFTER, GRU_BEFORE, SIMPLE_RNN = sorted(KINDS, key=KINDS.__getitem__)


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
        phases = 2 if shape.cell == GRU_BEFORE else 1
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
