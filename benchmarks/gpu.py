"""Everything that needs a CUDA device: tests, parity, and times of layers, training and models.

    python -m benchmarks gpu [--models FOLDER] [--json build/gpu.json] [--table build/gpu.md]
    python -m benchmarks gpu --device cpu --dry-run

Every case runs in a process of its own on a GPU, as one error may leave the device unusable for a
process; the next process goes on behind the contender that failed. With TF32 off and on: cuDNN uses
it by default, matrix products do not. Every contender's numbers are compared with float64 before it
is timed. A contender that cannot run is in the results with its reason, one that fails with its
error; the other rows have the engine, the reason, warnings, memory, clocks, and the times of host
and device apart. The file ends with a verdict and is all there is to send. Without ``--models``,
some fixtures are timed; Keras, where a TensorFlow is installed that sees the device.
``--dry-run`` does the same with tiny sizes, in one process on the CPU, and fails if something else
than the device is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

import keras2torch_birnn as k2t
from benchmarks.convert import processor
from benchmarks.tasks import CELLS, ROOT, SHAPES, find_fixtures, stack
from keras2torch_birnn.bench import by_torch
from keras2torch_birnn.bench.case import Case, Model, exact
from keras2torch_birnn.bench.contenders import CONTENDERS, PLAIN, reason_against
from keras2torch_birnn.bench.measure import measure
from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.float32_precision import float32_precision
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.rnn.diagnosis import describe_torch
from keras2torch_birnn.rnn.engines import select
from keras2torch_birnn.rnn.gpu.timing import MEASURED

# Name -> what ``by_torch.prepare`` runs: engines, and torch's own layers.
OURS, CUDNN, LOOP = "k2t", "torch", "loop"
RUNS = {OURS: "auto", "k2t graph": "graph", "k2t triton": "triton", LOOP: "loop", CUDNN: "torch"}
KERAS = ("Keras predict", "Keras tf.function", "Keras XLA")
# Seconds of a process: a kernel that never ends must not keep all others out of the results. Tests
# compile hundreds of kernels.
LONGEST, LONGEST_TESTS = 1800, 7200
# Tests that failed are run again, each alone, up to this number: one error of the device fails all
# tests behind it.
ALONE = 20
STEP_TESTS = "tests/rnn/test_triton_steps.py"
# A warning that torch or Triton gives once on a device is no failure; it is in what was said.
# One worker: where a test ends its process, that test has failed, and the others run in the next.
PYTEST = (sys.executable, "-m", "pytest", "-q", "-W", "default", "-n", "1")
# Cells that cuDNN lacks.
LACKING = ("lstm-hard", "gru-before-hard")
MODELS = (
    "tf.keras-2.15.0/mask_stack_bi_dense.h5",
    "keras-2.2.4/arch_ner_char_lstm.h5",
    "keras-2.2.4/arch_sentiment.h5",
    "keras-2.2.4/stacked_bi.h5",
)
SUFFIXES = (".h5", ".hdf5", ".keras")
# Relative to the largest number: float32 sums in another order, and TF32 with its 10 bits.
ALLOWED = {False: 1e-5, True: 5e-2}
# What a dry run may say of a contender that did not run: the device is what it lacks.
OF_THE_DEVICE = (
    "it is for dense tensors on one CUDA device",
    "not timed on cpu",
    "gradients and dropout cannot be recorded",
)


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    shapes: Sequence[tuple[int, int, int, int]]
    cells: Sequence[str]
    batches: Sequence[int]
    steps: int
    rounds: int
    tests: Sequence[str]


FULL = Sizes(SHAPES, tuple(CELLS), (1, 8, 32), 50, 9, ())
TINY = Sizes(((2, 3, 5, 7),), ("lstm", "lstm-hard"), (2,), 3, 1, ("tests/rnn/test_cuda_graph.py",))


def facts(device: str) -> dict[str, Any]:
    """Return versions and the names of the devices."""
    return {
        "python": platform.python_version(),
        "k2t": k2t.__version__,
        "torch": torch.__version__,
        "device": device,
        "processor": processor(),
        **describe_torch(),
    }


def run_tests(paths: Sequence[str]) -> dict[str, Any]:
    """Run the tests that are marked gpu, and those of the kernels, which then run on the device."""
    marked = ["-m", "gpu"]
    chosen = dict.fromkeys(paths, marked) or {"tests": marked, STEP_TESTS: []}
    results = {}
    for path, options in chosen.items():
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "junit.xml"
            done = run_process([*PYTEST, path, *options, f"--junitxml={report}"], LONGEST_TESTS)
            code = f"exit code {done.returncode}"
            said = "\n".join(filter(None, (done.stderr.strip(), done.stdout.strip()))) or code
            wrote = report.exists()
            failed = _failures(report) if wrote else {}
        alone = [name for name in [*failed][:ALONE] if run_process([*PYTEST, name]).returncode == 0]
        results[path] = {
            "ok": done.returncode == 0,
            "summary": said.splitlines()[-1] if wrote else f"{code}: {said.splitlines()[-1]}",
            "failed": failed,
            "passed_alone": alone,
            "said": said[-4000:],
        }
    return results


def run_process(
    command: Sequence[str], longest: float = LONGEST
) -> subprocess.CompletedProcess[str]:
    """Run a process, and end it where it does not end by itself."""
    try:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, errors="replace", timeout=longest, check=False
        )
    except subprocess.TimeoutExpired as ended:  # what it wrote is in bytes here
        both = (ended.stdout or b"", ended.stderr or b"")
        out, error = (said.decode(errors="replace") for said in both)
        return subprocess.CompletedProcess(command, -9, out, f"{error}\nnot done in {longest} s")


def _failures(report: Path) -> dict[str, str]:
    """Return the tests that failed, as pytest names them, and what each said."""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {
        f"{str(case.get('classname')).replace('.', '/')}.py::{case.get('name')}": str(
            bad.get("message")
        )[:1000]
        for case in cases
        for bad in (*case.iter("failure"), *case.iter("error"))
    }


# ---- one case ------------------------------------------------------------------------------------


@contextmanager
def noting_engines(row: dict[str, Any]) -> Iterator[None]:
    """Note the engines that run, and the reason for each, in a row of the results."""
    chosen, row["engines"] = select.select_engine, {}

    def note(layer: Any, call: Any) -> Any:
        found = chosen(layer, call)
        if found.row.name not in row["engines"]:
            row["engines"][found.row.name] = found.engine.reason(layer, call)
        return found

    select.select_engine = note
    try:
        yield
    finally:
        select.select_engine = chosen


@dataclass
class Stopwatch:
    """Times of the host until it waits for the device, and of the device until it is done."""

    device: str
    host: list[float] = field(default_factory=list)
    events: list[tuple[Any, Any]] = field(default_factory=list)
    start: float = 0.0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note when the host begins to wait, in everything that is prepared in this block."""
        wait, cuda = torch.accelerator.synchronize, torch.cuda

        def synchronize(*given: Any) -> None:
            self.host.append(1e3 * (time.perf_counter() - self.start))
            if self.events:
                self.events[-1][1].record()
            wait(*given)

        accelerator: Any = torch.accelerator
        accelerator.synchronize = synchronize
        try:
            yield
        finally:
            accelerator.synchronize = wait
            if self.device == "cuda":
                cuda.synchronize()

    def time(self, run: Callable[[], Any], rounds: int) -> dict[str, Any]:
        """Return the times of some calls in milliseconds, and their medians."""
        self.host.clear()
        times = []
        for _ in range(rounds):
            if self.device == "cuda":
                event: Any = torch.cuda.Event
                self.events.append((event(enable_timing=True), event(enable_timing=True)))
                self.events[-1][0].record()
            self.start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - self.start))
        found = {"ms": statistics.median(times), "times_ms": times}
        if self.host:
            found["host_ms"] = statistics.median(self.host)
        if self.events:
            found["device_ms"] = statistics.median(a.elapsed_time(b) for a, b in self.events)
        return found


def state_of_gpu() -> dict[str, Any]:
    """Return the name of the GPU, its clocks and temperature, and the memory that was used."""
    asked = "name,clocks.sm,clocks.mem,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    except OSError:  # AMD has none
        said = [torch.cuda.get_device_name()]
    return {"gpu": said, "memory_mb": torch.cuda.max_memory_allocated() / 2**20}


def time_case(
    case: Case,
    wanted: list[Any],
    inputs: list[Any],
    device: str,
    rounds: int,
    start: int = 0,
) -> Iterator[dict[str, Any]]:
    """Compare and time every contender on torch; wanted: the exact outputs.

    start: contenders that had their turn in another process. The row of one that fails is the last.
    """
    size = max(float(np.abs(y).max(initial=1.0)) for y in wanted)
    for tf32, (name, how) in [*itertools.product((False, True), RUNS.items())][start:]:
        row: dict[str, Any] = {"contender": name, "tf32": tf32}
        if name == CUDNN and (reason := reason_against(PLAIN, case, device)):
            yield {**row, "absent": reason}
            continue
        stopwatch = Stopwatch(device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                with (
                    float32_precision("tf32" if tf32 else "ieee"),
                    noting_engines(row),
                    stopwatch.watch(),
                ):
                    prepared = by_torch.prepare(case, how, device, inputs)
                    found = [y.detach().cpu().numpy() for y in _tensors(prepared.outputs())]
                    row["error"] = max(
                        float(np.abs(a - b).max(initial=0.0)) / size
                        for a, b in zip(found, wanted, strict=True)
                    )
                    for _ in range(3):  # the second call captures a graph
                        prepared.run()
                    row |= stopwatch.time(prepared.run, rounds)
                row["ok"] = row["error"] <= ALLOWED[tf32]
                row |= state_of_gpu() if device == "cuda" else {}
            except K2TError as refused:
                row["absent"] = str(refused).partition(": ")[2].partition("; ")[0]
            except Exception as failure:  # whatever it is, it belongs into the results
                row["failed"] = "".join(traceback.format_exception(failure))[-4000:]
        row["measured"] = {str(what): times for what, times in MEASURED.items()}
        yield {**row, "warnings": [str(one.message) for one in warned]}
        if "failed" in row:
            return


def _tensors(outputs: Any) -> list[torch.Tensor]:
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


def time_keras(case: Case, device: str, rounds: int) -> list[dict[str, Any]]:
    """Time Keras in processes of its own, where TensorFlow is installed."""
    table = {
        name: dataclasses.replace(CONTENDERS[name], devices=("cuda",))  # on the CPU: k2t bench
        for name in KERAS
    }
    row = measure(case, device=device, rounds=rounds, contenders=KERAS, table=table)
    return [
        {"contender": t.contender, "tf32": True, "absent": t.absent}
        if t.absent
        else {"contender": t.contender, "tf32": True, "ms": t.median_ms, "error": t.error}
        for t in row.timings
    ]


def works(sizes: Sizes, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Return all cases as data: models to verify, layers, called and trained, and whole models."""
    for path in paths:
        yield {"part": "parity", "case": path.name, "path": str(path)}
    for shape, cell, masked, training in itertools.product(
        sizes.shapes, sizes.cells, (False, True), (False, True)
    ):
        name = f"{cell} {'x'.join(map(str, shape))}{' masked' if masked else ''}"
        part = "training" if training else "layers"
        head = {"part": part, "case": name, "cell": cell, "shape": shape, "masked": masked}
        yield {**head, "rounds": sizes.rounds}
    for path, batch in itertools.product(paths, sizes.batches):
        case = Model(str(path), batch=batch, time=sizes.steps)
        head = {"part": "models", "case": case.label, "path": str(path)}
        yield {**head, "batch": batch, "steps": sizes.steps, "rounds": sizes.rounds}


def rows_of(work: Mapping[str, Any], device: str, start: int = 0) -> Iterator[dict[str, Any]]:
    """Do a work; start: rows that another process had before it failed."""
    if work["part"] == "parity":
        yield verify(Path(work["path"]), device)
        return
    rounds = work["rounds"]
    inputs: list[Any] = []
    if work["part"] == "models":
        case: Case = Model(work["path"], batch=work["batch"], time=work["steps"])
        try:
            inputs, wanted = _exact_model(Path(work["path"]), work["batch"], work["steps"])
        except K2TError as refused:
            yield {"absent": str(refused)}
            return
    else:
        training, masked = work["part"] == "training", work["masked"]
        shape = tuple(work["shape"])
        case = stack(work["cell"], "mul", 2, shape, masked=masked, training=training)
        wanted = [by_torch.trained_exactly(case) if training else exact(case)]
    for row in time_case(case, wanted, inputs, device, rounds, start):
        yield row
        if "failed" in row:
            return
    called = work["part"] == "layers" and not work["masked"] and work["cell"] in LACKING
    if called or work["part"] == "models":
        yield from time_keras(case, device, rounds)


def _exact_model(path: Path, batch: int, steps: int) -> tuple[list[Any], list[Any]]:
    """Return inputs of a model, and its outputs in float64."""
    drawn = draw_inputs(read_model(path), steps=steps, seed=0)
    inputs = [np.resize(x, (batch, *x.shape[1:])) for x in drawn]
    double = k2t.convert(path).double().eval()
    with torch.no_grad():
        given = [torch.from_numpy(x) for x in inputs]
        given = [x.double() if x.is_floating_point() else x for x in given]
        return inputs, [y.numpy() for y in _tensors(double(*given))]


def verify(path: Path, device: str) -> dict[str, Any]:
    """Verify a model and every layer of it, without TF32 and with the device's default."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "model.pt"
            k2t.save(k2t.convert(path), out)
            report = k2t.verify(path, out, devices=[device], against="reference")
    except K2TError as refused:
        return {"absent": str(refused)}
    return {
        "ok": report.ok,
        "comparisons": [
            {"device": c.device, "counts": c.counts, "error": c.max_abs_error, "ok": c.ok}
            for c in report.comparisons
        ],
    }


def in_processes(work: Mapping[str, Any], device: str) -> Iterator[dict[str, Any]]:
    """Do a work in processes of its own: another one behind each row that failed."""
    count = 0
    while True:
        command = [sys.executable, "-m", "benchmarks", "gpu", "--device", device]
        command += ["--work", json.dumps(work), "--start", str(count)]
        done = run_process(command)
        rows = rows_in(done.stdout)
        if done.returncode or not (rows or count):  # it ended without a word of its own
            rows.append({"failed": f"exit code {done.returncode}: {done.stderr[-4000:]}"})
        yield from rows
        count += len(rows)
        failed = bool(rows) and "failed" in rows[-1]
        if not failed or work["part"] == "parity" or count >= 2 * len(RUNS):
            return


def rows_in(said: str) -> list[dict[str, Any]]:
    """Return the rows that a process printed, among whatever its libraries print."""
    rows = []
    for line in said.splitlines():
        with suppress(ValueError):  # a line that was cut off, or another's
            rows += [row] if isinstance(row := json.loads(line), dict) else []
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the times as a table: k2t, and its ratio to the others."""
    times = {
        (row["part"], row["case"], row["tf32"], row["contender"]): row["ms"]
        for row in rows
        if "ms" in row
    }

    def ratio(part: str, case: str, tf32: bool, *others: str) -> str:
        found = [times[key] for o in others if (key := (part, case, tf32, o)) in times]
        ours = times.get((part, case, tf32, OURS))
        return f"{ours / min(found):.2f}" if found and ours else ""

    lines = [
        "| | TF32 | k2t, ms | / loop | / torch | / cuDNN's LSTM | / Keras |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for part, case, tf32, contender in times:
        if contender != OURS:
            continue
        ours = times[part, case, tf32, OURS]
        # The LSTM that cuDNN computes, of the same size.
        name, _, rest = case.partition(" ")
        lstm = times.get((part, f"lstm {rest}", tf32, CUDNN)) if name in CELLS else None
        lines.append(
            f"| {part}: {case} | {'on' if tf32 else 'off'} | {ours:.3g} "
            f"| {ratio(part, case, tf32, LOOP)} | {ratio(part, case, tf32, CUDNN)} "
            f"| {f'{ours / lstm:.2f}' if lstm else ''} | {ratio(part, case, tf32, *KERAS)} |"
        )
    return "\n".join(lines) + "\n"


def what_is_wrong(found: Mapping[str, Any]) -> list[str]:
    """Return everything in the results that is not due to the device; empty: all is well."""
    wrong = []
    for path, tests in found["tests"].items():
        if not tests["ok"]:
            alone = tests["passed_alone"]
            wrong += [
                f"tests: {path}: {one}{', but not alone' * (one in alone)}"
                for one in tests["failed"] or [tests["summary"]]
            ]
    for row in found["rows"]:
        absent, name = row.get("absent", ""), f"{row['case']}, {row.get('contender', row['part'])}"
        if "failed" in row:
            wrong.append(f"{name}: failed: {row['failed'].strip().splitlines()[-1]}")
        elif not row.get("ok", True):
            off = f"{row['error']:.1e} off" if "error" in row else "not equal"
            wrong.append(f"{name}: {off}")
        expected = absent.startswith(OF_THE_DEVICE) or row.get("contender") == CUDNN
        if absent and not expected:
            wrong.append(f"{name}: {absent}")
    return wrong


def models_in(folder: Path | None, *, dry: bool) -> list[Path]:
    """Return the models of a folder, or some fixtures."""
    if folder is None:
        return [find_fixtures() / name for name in MODELS[: 1 if dry else None]]
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)


def main(arguments: Sequence[str]) -> None:
    """Test, measure, and write JSON and table."""
    parser = argparse.ArgumentParser("python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--json", type=Path, default=Path("build/gpu.json"))
    parser.add_argument("--table", type=Path, default=Path("build/gpu.md"))
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device: --device cpu --dry-run shows what would run")
    if args.device == "cuda":
        os.environ["TRITON_INTERPRET"] = "0"  # in the tests, too, and recorded with the facts
    if args.work is not None:
        for row in rows_of(args.work, args.device, args.start):
            print(json.dumps(row), flush=True)
        return
    sizes = TINY if args.dry_run else FULL
    paths = models_in(args.models, dry=args.dry_run)
    compute = in_processes if args.device == "cuda" else rows_of
    found: dict[str, Any] = {"facts": facts(args.device), "tests": run_tests(sizes.tests)}
    found["rows"] = []
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for work in works(sizes, paths):
        head = {key: work[key] for key in ("part", "case")}
        for row in compute(work, args.device):
            found["rows"].append({**work, **row})
            shown = row.get("ms", row.get("absent", "failed" if "failed" in row else ""))
            print(*head.values(), row.get("contender", ""), shown, flush=True)
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found["table"], found["wrong"] = table_of(found["rows"]), what_is_wrong(found)
    args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    args.table.write_text(found["table"], encoding="utf-8")
    print(found["table"])
    verdict = "all is well" if not found["wrong"] else "\n".join(found["wrong"])
    print(f"{verdict}\n\nThe file to send: {args.json}")
    if found["wrong"]:
        sys.exit(1)
