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
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from keras2torch_birnn.cli.bench.contenders import CONTENDERS, Contender
from keras2torch_birnn.conversion import convert
from keras2torch_birnn.errors import K2TError, printable
from keras2torch_birnn.exporting.exporter import export
from keras2torch_birnn.golden import reference_covers
from keras2torch_birnn.progress import advance, begin
from keras2torch_birnn.reference import compute
from keras2torch_birnn.reference.sample_inputs import draw_inputs, input_facts
from keras2torch_birnn.spec import Array, ModelSpec
from keras2torch_birnn.verification.live_keras import keras_for, reason_against_keras

# Those of k2t verify.
ATOL, RTOL = 1e-5, 1e-4
QUIET_SECONDS = 0.05


@dataclass(frozen=True)
class Case:
    """A Keras file to time, with the rows and steps of its inputs. label: its name in the table."""

    label: str
    path: str
    config: str | None = None
    batch: int = 1
    steps: int = 50


@dataclass(frozen=True)
class Timing:
    """Times of one contender in milliseconds, or why there are none. error: the largest."""

    contender: str
    runs: str = ""
    error: float = math.nan
    times_ms: tuple[float, ...] = ()
    absent: str = ""

    @property
    def median_ms(self) -> float:
        """Median of the rounds; NaN if there are none."""
        return statistics.median(self.times_ms) if self.times_ms else math.nan


@dataclass(frozen=True)
class Row:
    """Timings of all contenders on one case."""

    case: Case
    timings: tuple[Timing, ...]

    def ratio(self, name: str, to: str) -> float:
        """Divide the median of one contender by that of another; NaN if either is absent."""
        medians = {timing.contender: timing.median_ms for timing in self.timings}
        return medians.get(name, math.nan) / medians.get(to, math.nan)


def measure(
    case: Case,
    spec: ModelSpec,
    *,
    threads: int = 2,
    rounds: int = 9,
    contenders: Mapping[str, Contender] = CONTENDERS,
    inputs: Sequence[Array] | None = None,
    wanted: Sequence[Array] | None = None,
) -> Row:
    """Time every contender that can run the case and agrees with the exact numbers.

    spec: what the case's file holds, with its weights. inputs: instead of random ones. wanted: what
    is to come out, instead of the model's exact output (of a contender that trains).

    Raises:
        K2TError: the model cannot be converted.
    """
    given = tuple(inputs) if inputs is not None else draw(spec, case)
    exact = wanted if wanted is not None else compute_exactly(spec, case, given)
    workers: dict[str, _Worker] = {}
    found: dict[str, Timing] = {}
    with tempfile.TemporaryDirectory(prefix="k2t-") as name:
        folder = Path(name)
        facts = {**asdict(case), "package": keras_for(spec)}
        folder.joinpath("case.json").write_text(json.dumps(facts), "utf-8")
        np.savez(folder / "inputs.npz", *given)
        try:
            for one, contender in contenders.items():
                begin(f"{one} gets ready")
                reason = _prepare(contender, case, spec, folder)
                if reason:
                    found[one] = Timing(one, absent=reason)
                    continue
                worker = workers[one] = _Worker(contender, folder, threads)
                if "error" in worker.first:
                    found[one] = Timing(one, absent=printable(worker.first["error"]))
                    continue
                with np.load(folder / "outputs.npz") as data:
                    reason, error = compare([data[key] for key in data.files], exact)
                found[one] = Timing(
                    one, worker.first["runs"], error, absent=reason if contender.exact else ""
                )
            there = [one for one, timing in found.items() if not timing.absent]
            times = _go_round({one: workers[one] for one in there}, rounds, case.label)
        finally:
            for worker in workers.values():
                worker.stop()
    timings = (replace(t, times_ms=tuple(times.get(one, ()))) for one, t in found.items())
    return Row(case, tuple(timings))


def _go_round(workers: Mapping[str, _Worker], rounds: int, label: str) -> dict[str, list[float]]:
    """Time each contender once a round."""
    there = list(workers)
    times: dict[str, list[float]] = {one: [] for one in there}
    begin(label, rounds * len(there), "runs")
    for number in range(rounds):
        # Each round begins with another one, so that nobody always follows the same.
        first = number % max(1, len(there))
        for one in there[first:] + there[:first]:
            # Threads of the one before go on looking for work, in its process, for a while.
            time.sleep(QUIET_SECONDS)
            times[one].append(workers[one].time())
            advance(1)
    return times


def _prepare(contender: Contender, case: Case, spec: ModelSpec, folder: Path) -> str:
    """Export the model for a contender; return why it cannot run, empty if it can."""
    lacking = [one for one in contender.needs if one != "keras" and find_spec(one) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed"
    try:
        if "keras" in contender.needs:
            config = None if case.config is None else Path(case.config)
            against = reason_against_keras(Path(case.path), config, spec)
            return "" if against is None else printable(against.reason)
        file = folder / contender.file
        if contender.file and not file.exists():
            export(convert(case.path, config=case.config), file)
    except K2TError as error:
        return f"{error.message}; {error.advice}" if error.advice else error.message
    return ""


class _Worker:
    """The process of a contender."""

    def __init__(self, contender: Contender, folder: Path, threads: int) -> None:
        environment = {
            **os.environ,
            **contender.environment,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        environment.pop("K2T_ENGINE", None)
        module = "keras2torch_birnn.cli.bench.contenders"
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, contender.function, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.first = self._read()

    def time(self) -> float:
        """Return the milliseconds of a call; NaN if the process has ended."""
        if self.process.stdin and self.process.poll() is None:
            self.process.stdin.write("run\n")
            self.process.stdin.flush()
        return float(self._read().get("ms", math.nan))

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        found: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        return found

    def stop(self) -> None:
        """End the process."""
        self.process.communicate()


def draw(spec: ModelSpec, case: Case) -> tuple[Array, ...]:
    """Draw inputs for a model, as many rows as the case has, unless the file fixes them."""
    inputs = draw_inputs(spec, steps=case.steps, seed=0)
    if any(facts.shape and facts.shape[0] for facts in input_facts(spec)):
        return inputs
    return tuple(np.resize(x, (case.batch, *x.shape[1:])) for x in inputs)


def compute_exactly(spec: ModelSpec, case: Case, inputs: Sequence[Array]) -> list[Array]:
    """Compute the outputs in float64."""
    if reference_covers(spec):
        return list(compute(spec, inputs).outputs)
    import torch

    from keras2torch_birnn.golden import copy_in_float64
    from keras2torch_birnn.layers.running import run

    model = copy_in_float64(convert(case.path, config=case.config))
    return [y.numpy() for y in run(model, tuple(torch.from_numpy(x) for x in inputs))]


def compare(found: Sequence[Array], wanted: Sequence[Array]) -> tuple[str, float]:
    """Tell why outputs differ (empty if they agree), and the largest error.

    What is NaN in Keras does not count, other NaN counts most.
    """
    if [y.shape for y in found] != [y.shape for y in wanted]:
        return "other outputs", math.inf
    size = max(float(np.nanmax(np.abs(y), initial=0.0)) for y in wanted)
    pairs = zip(found, wanted, strict=True)
    off = np.concatenate([np.abs(a - b)[~np.isnan(b)].ravel() for a, b in pairs])
    error = math.inf if np.isnan(off).any() else float(off.max(initial=0.0))
    allowed = ATOL + RTOL * size
    return ("" if error <= allowed else f"other numbers: {error:.1e} off"), error


def facts_of_machine(threads: int, rounds: int) -> dict[str, Any]:
    """Return machine and settings, for the head of the table and the JSON."""
    from keras2torch_birnn.rnn.native.library import find_sets, why_missing

    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": threads,
        "rounds": rounds,
        "native_kernel": why_missing() or next(iter(find_sets("float32"))),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
