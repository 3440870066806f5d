"""Measure what needs a CUDA device: parity of every layer, times against cuDNN and the loop.

    python -m benchmarks gpu [--models FOLDER] [--json build/gpu.json]
    python -m benchmarks gpu --device cpu --dry-run

The tests marked ``gpu`` compare every layer with what Keras gave. Then layers, a step of training
and whole models are compared with float64 and timed, without and with TF32. Each of these cases
runs in a process of its own, as an error may leave the device unusable for the rest of a process.
The file ends with a verdict and is all there is to send. Without ``--models``, some fixtures are
timed. ``--dry-run`` does the same with tiny sizes, in one process on the CPU, and fails if
something else than the device is missing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import keras2torch_birnn as k2t
from benchmarks.contenders import LOOP, train
from benchmarks.convert import processor
from benchmarks.run import CELLS, ROOT, SHAPES, find_fixtures, make_stack
from keras2torch_birnn.cli.bench.contenders import OURS, PLAIN
from keras2torch_birnn.cli.bench.measure import Case, draw
from keras2torch_birnn.comparison.outputs import float32_precision
from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.rnn.diagnosis import describe_torch

# Contender -> engine; torch's own layers are cuDNN's. The reference is the loop in float64.
RUNS: Mapping[str, str] = {OURS: "auto", LOOP: "loop", PLAIN: "fused"}
LONGEST = 1800  # seconds of a process: a kernel that never ends must not keep the rest out
MODELS = (
    "tf.keras-2.15.0/mask_stack_bi_dense.h5",
    "keras-2.2.4/arch_ner_char_lstm.h5",
    "keras-2.2.4/arch_sentiment.h5",
    "keras-2.2.4/stacked_bi.h5",
)
SUFFIXES = (".h5", ".hdf5", ".keras")
STEPS = 50
# Relative to the largest number: float32 sums in another order, and TF32 with its 10 bits.
ALLOWED = {False: 1e-5, True: 5e-2}
TESTS = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests")


def list_cases(paths: Sequence[Path], folder: Path, *, tiny: bool) -> Iterator[dict[str, Any]]:
    """Yield layers, called and trained, without and with a mask, then whole models."""
    shapes = ((2, 3, 5, 7),) if tiny else SHAPES
    for shape, cell, masked, trains in product(shapes, CELLS, (False, True), (False, True)):
        task = make_stack(folder, shape, cell, "mul", masked=masked)
        inputs = folder / f"{Path(task.case.path).stem}.npz"
        np.savez(inputs, *(task.inputs or ()))
        label = f"{task.case.label}{' training' * trains}"
        case = {**asdict(task.case), "label": label}
        yield {"case": case, "inputs": str(inputs), "trains": trains}
    for path, batch in product(paths, (2,) if tiny else (1, 8, 32)):
        yield {"case": asdict(Case(f"{path.name} {batch}", str(path), None, batch, STEPS))}


def time_case(task: Mapping[str, Any], device: str, rounds: int) -> Iterator[dict[str, Any]]:
    """Compare every contender with float64 and time it; one that cannot run has its reason."""
    case, trains = Case(**task["case"]), task.get("trains", False)
    if "inputs" in task:
        with np.load(task["inputs"]) as data:
            inputs = [data[key] for key in data.files]
    else:
        inputs = list(draw(read_model(case.path), case))
    _, exact = _prepare(case, "loop", inputs, "cpu", torch.float64, trains=trains)
    wanted = exact()
    largest = max(float(np.abs(y).max(initial=1.0)) for y in wanted)
    for tf32, (name, engine) in product((False, True), RUNS.items()):
        row: dict[str, Any] = {"contender": name, "tf32": tf32}
        with float32_precision("tf32" if tf32 else "ieee"):
            try:
                run, outputs = _prepare(case, engine, inputs, device, torch.float32, trains=trains)
                found = outputs()
            except K2TError as refused:
                yield {**row, "absent": str(refused)}
                continue
            pairs = zip(found, wanted, strict=True)
            error = max(float(np.abs(a - b).max(initial=0.0)) / largest for a, b in pairs)
            times = []
            for _ in range(3 + rounds):  # of these three to warm up
                start = time.perf_counter()
                run()
                times.append(1e3 * (time.perf_counter() - start))
        yield {
            **row,
            "error": error,
            "ok": error <= ALLOWED[tf32],
            "ms": statistics.median(times[3:]),
            "times_ms": times[3:],
        }


def _prepare(
    case: Case,
    engine: Any,
    inputs: Sequence[Any],
    device: str,
    dtype: torch.dtype,
    *,
    trains: bool,
) -> tuple[Any, Any]:
    """Return what is timed, and what gives the outputs as arrays."""
    model = k2t.convert(case.path).to(device, dtype)
    k2t.set_engine(model, engine)
    given = [torch.from_numpy(x).to(device) for x in inputs]
    given = [x.to(dtype) if x.is_floating_point() else x for x in given]
    step = train(model, given) if trains else None

    def call() -> Any:
        with torch.inference_mode():
            return model(*given)

    def run() -> None:
        (step.run if step else call)()
        if device != "cpu":
            torch.accelerator.synchronize(device)

    def outputs() -> list[Any]:
        found = step.outputs() if step and step.outputs else call()
        return [y.detach().cpu().numpy() for y in flat(found)]

    return run, outputs


def run_case(case: Mapping[str, Any], device: str, rounds: int) -> Iterator[dict[str, Any]]:
    """Time a case; whatever fails is the last row."""
    try:
        yield from time_case(case, device, rounds)
    except K2TError as refused:
        yield {"absent": str(refused)}
    except Exception as failure:  # whatever it is, it belongs into the results
        yield {"failed": "".join(traceback.format_exception(failure))[-4000:]}


def run_apart(case: Mapping[str, Any], device: str, rounds: int) -> list[dict[str, Any]]:
    """Time a case in a process of its own, which prints a row a line."""
    command = [sys.executable, "-m", "benchmarks", "gpu", "--device", device]
    code, out, error = run_process([*command, "--rounds", str(rounds), "--case", json.dumps(case)])
    rows = [json.loads(line) for line in out.splitlines() if line.startswith('{"')]
    return rows if rows and not code else [*rows, {"failed": f"exit code {code}: {error[-4000:]}"}]


def run_process(command: Sequence[str]) -> tuple[int, str, str]:
    """Return the exit code of a process and what it said; one that does not end is ended."""
    options: Any = {"cwd": ROOT, "capture_output": True, "text": True, "errors": "replace"}
    try:
        done = subprocess.run(command, timeout=LONGEST, check=False, **options)
    except subprocess.TimeoutExpired:
        return -9, "", f"not done in {LONGEST} s"
    return done.returncode, done.stdout, done.stderr


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the times as a table: k2t, and its ratio to the others."""
    times = {(row["case"], row["tf32"], row["contender"]): row["ms"] for row in rows if "ms" in row}

    def ratio(case: str, tf32: bool, other: str) -> str:
        found = times.get((case, tf32, other))
        return f"{times[case, tf32, OURS] / found:.2f}" if found else ""

    lines = ["| | TF32 | k2t, ms | / loop | / cuDNN |", "|---|---|--:|--:|--:|"]
    lines += [
        f"| {case} | {'on' if tf32 else 'off'} | {ms:.3g} | {ratio(case, tf32, LOOP)} "
        f"| {ratio(case, tf32, PLAIN)} |"
        for (case, tf32, contender), ms in times.items()
        if contender == OURS
    ]
    return "\n".join(lines) + "\n"


def list_faults(found: Mapping[str, Any]) -> list[str]:
    """Return what is wrong but for contenders that lack something; empty: all is well."""
    tests = found["tests"]
    wrong = [f"tests: {tests['said'].splitlines()[-1]}"] if tests["code"] else []
    for row in found["rows"]:
        name = f"{row['case']}, {row.get('contender', 'all')}"
        if "failed" in row:
            wrong.append(f"{name}: failed: {row['failed'].strip().splitlines()[-1]}")
        elif "absent" in row and row.get("contender", OURS) == OURS:
            wrong.append(f"{name}: {row['absent']}")
        elif not row.get("ok", True):
            wrong.append(f"{name}: {row['error']:.1e} off")
    return wrong


def main(arguments: Sequence[str]) -> None:
    """Test, measure, and write the file to send."""
    parser = argparse.ArgumentParser("python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, default=Path("build/gpu.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device: --device cpu --dry-run shows what would run")
    if args.case:
        for row in run_case(json.loads(args.case), args.device, args.rounds):
            print(json.dumps(row), flush=True)
        return
    paths = [find_fixtures() / name for name in MODELS[: 1 if args.dry_run else None]]
    if args.models:
        paths = sorted(path for path in args.models.rglob("*") if path.suffix in SUFFIXES)
    code, said, error = run_process(TESTS)
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "k2t": k2t.__version__,
        "torch": torch.__version__,
        "processor": processor(),
        **describe_torch(),
        "tests": {"code": code, "said": f"{error}\n{said}".strip()[-8000:]},
        "rows": [],
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for case in list_cases(paths, Path(folder), tiny=args.dry_run):
            compute = run_case if args.dry_run else run_apart
            label = case["case"]["label"]
            for row in compute(case, args.device, 1 if args.dry_run else args.rounds):
                found["rows"].append({"case": label, **row})
                shown = row.get("ms") or row.get("absent") or "failed"
                print(label, row.get("contender", ""), shown, flush=True)
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found["table"], found["wrong"] = table_of(found["rows"]), list_faults(found)
    args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(found["table"])
    print("\n".join(found["wrong"]) or "all is well", f"\n\nThe file to send: {args.json}")
    if found["wrong"]:
        sys.exit(1)
