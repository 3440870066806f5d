"""Check parity, then time: each round runs every contender once; its process is idle in between."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras2torch_birnn.bench.case import Case, Model, Stack, exact, to_json
from keras2torch_birnn.bench.contenders import CONTENDERS, Contender, reason_against
from keras2torch_birnn.errors import printable
from keras2torch_birnn.progress import advance, begin
from keras2torch_birnn.spec import Array

# Of the largest output: float32 sums in another order. A model: k2t verify's tolerance.
STACK_TOLERANCE = 2e-6
ATOL, RTOL = 1e-5, 1e-4
QUIET_SECONDS = 0.05


@dataclass(frozen=True)
class Timing:
    """Times of one contender on one case, in milliseconds, or why there are none.

    error: the largest. relative_error: the root mean square by that of the outputs. above_mb: the
    memory that a call takes, where it was asked for. way: how the recurrent layers ran.
    """

    contender: str
    runs: str
    error: float
    times_ms: tuple[float, ...]
    absent: str = ""
    relative_error: float = math.nan
    above_mb: float | None = None
    way: str = ""

    @property
    def median_ms(self) -> float:
        """Median of the rounds; NaN if there are none."""
        return statistics.median(self.times_ms) if self.times_ms else float("nan")


@dataclass(frozen=True)
class Row:
    """Timings of all contenders on one case and device."""

    case: Case
    device: str
    timings: tuple[Timing, ...]

    def ratio(self, name: str, to: str) -> float | None:
        """Divide the median of one contender by that of another; None if either is absent."""
        found = {t.contender: t.median_ms for t in self.timings if t.times_ms}
        return found[name] / found[to] if name in found and to in found else None


class _Worker:
    """The process of a contender."""

    def __init__(
        self, contender: Contender, device: str, folder: Path, threads: int, *more: str
    ) -> None:
        environment = {
            **os.environ,
            **contender.environment,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        environment.pop("K2T_ENGINE", None)
        if device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        module = "keras2torch_birnn.bench.worker"
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, contender.module, contender.how, device, folder, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.first = self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        if self.process.stdin is None:
            raise TypeError("a worker has a stdin")
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        found: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        return found

    def stop(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        if self.process.stdout:
            self.process.stdout.close()
        self.process.wait()


def measure(
    case: Case,
    *,
    device: str = "cpu",
    threads: int = 2,
    rounds: int = 9,
    contenders: Sequence[str] = tuple(CONTENDERS),
    table: Mapping[str, Contender] = CONTENDERS,
    exactly: bool = True,
    memory: bool = False,
) -> Row:
    """Time every contender that can run the case and agrees with the exact numbers.

    contenders: names in ``table``. exactly: without it, they are to agree with the first of them.
    memory: tell also how much a call takes (on Linux).

    Raises:
        K2TError: the case is a model that cannot be converted.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.joinpath("case.json").write_text(to_json(case), encoding="utf-8")
        wanted = _wanted(case, folder) if exactly else None
        absent = {c: reason_against(c, case, device, table) for c in contenders}
        workers: dict[str, _Worker] = {}
        errors: dict[str, tuple[float, float]] = {}
        try:
            for contender in contenders:
                if absent[contender]:
                    continue
                begin(f"{contender} gets ready")
                worker = workers[contender] = _Worker(
                    table[contender], device, folder, threads, *(["memory"] if memory else [])
                )
                absent[contender] = printable(str(worker.first.get("error", "")))
                if not absent[contender]:
                    file = folder / "outputs.npz"
                    worker.ask(f"outputs {file}")
                    found = _read_outputs(file)
                    wanted = found if wanted is None else wanted
                    tolerance = table[contender].tolerance
                    absent[contender], *both = _difference(case, found, wanted, tolerance)
                    errors[contender] = (both[0], both[1])
            times: dict[str, list[float]] = {c: [] for c in contenders if not absent[c]}
            there = list(times)
            begin(case.label, rounds * len(there), "runs")
            for number in range(rounds):
                # Each round begins with another one, so that nobody always follows the same.
                first = number % max(1, len(there))
                for contender in there[first:] + there[:first]:
                    # Threads of the one before go on looking for work, in its process, for a while.
                    time.sleep(QUIET_SECONDS)
                    times[contender].append(float(workers[contender].ask("run")["ms"]))
                    advance(1)
        finally:
            for worker in workers.values():
                worker.stop()
    timings = tuple(
        Timing(
            c,
            str(workers[c].first.get("runs", "")) if c in workers else "",
            errors.get(c, (math.nan, math.nan))[0],
            tuple(times.get(c, ())),
            absent[c],
            errors.get(c, (math.nan, math.nan))[1],
            workers[c].first.get("above_mb") if c in workers else None,
            str(workers[c].first.get("way", "")) if c in workers else "",
        )
        for c in contenders
    )
    return Row(case, device, timings)


def _wanted(case: Case, folder: Path) -> list[Array]:
    """Compute the exact outputs; the inputs drawn for a model are left in the folder."""
    if isinstance(case, Stack) and case.training:
        from keras2torch_birnn.bench.by_torch import trained_exactly

        return [trained_exactly(case)]
    if isinstance(case, Stack):
        return [exact(case)]
    from keras2torch_birnn.golden import reference_covers
    from keras2torch_birnn.readers import read_model
    from keras2torch_birnn.reference import compute
    from keras2torch_birnn.reference.sample_inputs import draw_inputs, input_facts
    from keras2torch_birnn.running import copy_in_float64, run

    spec = read_model(case.path, config=case.config, cut=case.cut)
    inputs = draw_inputs(spec, steps=case.time, seed=0)
    facts = input_facts(spec)
    if not any(f.shape and f.shape[0] for f in facts):  # the file leaves the batch open
        inputs = tuple(np.resize(x, (case.batch, *x.shape[1:])) for x in inputs)
    named: dict[str, Any] = {f"x{i}": x for i, x in enumerate(inputs)}
    np.savez(folder / "inputs.npz", **named)
    if reference_covers(spec):
        return list(compute(spec, inputs).outputs)
    import torch

    model = copy_in_float64(case.convert())
    return [y.numpy() for y in run(model, tuple(torch.from_numpy(x) for x in inputs))]


def _read_outputs(file: Path) -> list[Array]:
    with np.load(file) as data:
        return [data[f"y{i}"] for i in range(len(data.files))]


def _difference(
    case: Case, got: Sequence[Array], wanted: Sequence[Array], tolerance: float | None = None
) -> tuple[str, float, float]:
    """Tell why the outputs differ (empty if they agree), the largest error and the relative one."""
    if [y.shape for y in got] != [y.shape for y in wanted]:
        return "other outputs", math.inf, math.inf
    error = max(map(_error, got, wanted))
    size = max(float(np.nanmax(np.abs(y), initial=0.0)) for y in wanted)
    if tolerance is not None:
        allowed = tolerance * size
    elif isinstance(case, Model):
        allowed = ATOL + RTOL * size
    else:
        allowed = STACK_TOLERANCE * max(1.0, size)
    off = math.sqrt(sum(float(np.nansum((a - b) ** 2)) for a, b in zip(got, wanted, strict=True)))
    whole = math.sqrt(sum(float(np.nansum(y.astype("f8") ** 2)) for y in wanted))
    relative = off / whole if whole else math.nan
    return ("" if error <= allowed else f"other numbers: {error:.1e} off"), error, relative


def _error(computed: Array, wanted: Array) -> float:
    """Return the largest error; what is NaN in Keras does not count, other NaN counts most."""
    counts = ~np.isnan(wanted)
    error = float(np.abs(computed[counts] - wanted[counts]).max(initial=0.0))
    return math.inf if math.isnan(error) else error


def facts(threads: int, rounds: int) -> dict[str, Any]:
    """Return machine and settings, for the head of the table and the JSON."""
    from keras2torch_birnn.rnn.native.codes import REDUCED
    from keras2torch_birnn.rnn.native.library import find_sets, why_missing

    sets = {} if why_missing() else {one: [*find_sets(one)] for one in REDUCED}
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": threads,
        "rounds": rounds,
        "native_kernel": why_missing() or next(iter(find_sets("float32"))),
        "precisions": {one: names[0] for one, names in sets.items() if names},
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
