"""Everything that needs a CUDA device: tests, parity, and times of layers, training and models.

    python -m benchmarks gpu [--models FOLDER] [--json build/gpu.json] [--table build/gpu.md]
    python -m benchmarks gpu --device cpu --dry-run

With TF32 off and on: cuDNN uses it by default, matrix products do not. Every contender's numbers
are compared with float64 before it is timed; a contender that cannot run is in the results with its
reason. Without ``--models``, some fixtures are timed; Keras, where a TensorFlow is installed that
sees the device. ``--dry-run`` does the same with tiny sizes, and fails if something else than the
device is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import keras2torch_birnn as k2t
from benchmarks.convert import processor
from benchmarks.tasks import CELLS, ROOT, SHAPES, find_fixtures, stack
from keras2torch_birnn.bench import by_torch
from keras2torch_birnn.bench.case import Case, Model, Stack, exact
from keras2torch_birnn.bench.contenders import CONTENDERS, PLAIN, reason_against
from keras2torch_birnn.bench.measure import measure
from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.float32_precision import float32_precision
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.rnn.engines.triton_step import triton_version

# Name -> what ``by_torch.prepare`` runs: engines, and torch's own layers.
OURS, CUDNN, LOOP = "k2t", "torch", "loop"
RUNS = {OURS: "auto", "k2t graph": "graph", "k2t triton": "triton", LOOP: "loop", CUDNN: "torch"}
KERAS = ("Keras predict", "Keras tf.function", "Keras XLA")
STEP_TESTS = "tests/rnn/test_triton_steps.py"
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
OF_THE_DEVICE = ("it is for dense tensors on one CUDA device", "not timed on cpu")


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
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "k2t": k2t.__version__,
        "torch": torch.__version__,
        "triton": triton_version(),
        "device": device,
        "processor": processor(),
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    return found


def run_tests(paths: Sequence[str]) -> dict[str, Any]:
    """Run the tests that are marked gpu, and those of the kernels, which then run on the device."""
    marked = ["-m", "gpu"]
    chosen = dict.fromkeys(paths, marked) or {"tests": marked, STEP_TESTS: []}
    results = {}
    for path, options in chosen.items():
        command = [sys.executable, "-m", "pytest", "-q", path, *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        said = (done.stdout.strip() or done.stderr.strip()).splitlines()
        results[path] = {"ok": done.returncode == 0, "summary": said[-1]}
    return results


def time_case(
    case: Case, wanted: list[Any], inputs: list[Any], device: str, rounds: int, *, tf32: bool
) -> list[dict[str, Any]]:
    """Compare and time every contender on torch; wanted: the exact outputs."""
    rows = []
    size = max(float(np.abs(y).max(initial=1.0)) for y in wanted)
    for name, how in RUNS.items():
        if how == "graph" and isinstance(case, Stack) and case.training:
            continue  # it records no gradients
        row: dict[str, Any] = {"contender": name, "tf32": tf32}
        rows.append(row)
        if name == CUDNN and (reason := reason_against(PLAIN, case, device)):
            row["absent"] = reason
            continue
        try:
            with float32_precision("tf32" if tf32 else "ieee"):
                prepared = by_torch.prepare(case, how, device, inputs)
                found = [y.detach().cpu().numpy() for y in _tensors(prepared.outputs())]
                row["error"] = max(
                    float(np.abs(a - b).max(initial=0.0)) / size
                    for a, b in zip(found, wanted, strict=True)
                )
                for _ in range(3):  # the second call captures a graph
                    prepared.run()
                times = []
                for _ in range(rounds):
                    start = time.perf_counter()
                    prepared.run()
                    times.append(1e3 * (time.perf_counter() - start))
            row["ms"], row["times_ms"] = statistics.median(times), times
            row["ok"] = row["error"] <= ALLOWED[tf32]
        except K2TError as refused:
            row["absent"] = str(refused).partition(": ")[2].partition("; ")[0]
    return rows


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


def layer_rows(sizes: Sizes, device: str) -> Iterator[dict[str, Any]]:
    """Time the grid of layers, called and trained."""
    for shape, cell, masked, training in itertools.product(
        sizes.shapes, sizes.cells, (False, True), (False, True)
    ):
        case = stack(cell, "mul", 2, shape, masked=masked, training=training)
        wanted = [by_torch.trained_exactly(case) if training else exact(case)]
        part = "training" if training else "layers"
        name = f"{cell} {'x'.join(map(str, shape))}{' masked' if masked else ''}"
        found = [
            row
            for tf32 in (False, True)
            for row in time_case(case, wanted, [], device, sizes.rounds, tf32=tf32)
        ]
        if cell in LACKING and not masked and not training:
            found += time_keras(case, device, sizes.rounds)
        for row in found:
            head = {"part": part, "case": name, "cell": cell, "shape": shape, "masked": masked}
            yield {**head, **row}


def model_rows(paths: Sequence[Path], sizes: Sizes, device: str) -> Iterator[dict[str, Any]]:
    """Time whole models."""
    for path, batch in itertools.product(paths, sizes.batches):
        case = Model(str(path), batch=batch, time=sizes.steps)
        head = {"part": "models", "case": case.label}
        try:
            spec = read_model(path)
            drawn = draw_inputs(spec, steps=sizes.steps, seed=0)
            inputs = [np.resize(x, (batch, *x.shape[1:])) for x in drawn]
            double = k2t.convert(path).double().eval()
            with torch.no_grad():
                given = [torch.from_numpy(x) for x in inputs]
                given = [x.double() if x.is_floating_point() else x for x in given]
                wanted = [y.numpy() for y in _tensors(double(*given))]
        except K2TError as refused:
            yield {**head, "absent": str(refused)}
            continue
        for tf32 in (False, True):
            for row in time_case(case, wanted, inputs, device, sizes.rounds, tf32=tf32):
                yield {**head, **row}
        for row in time_keras(case, device, sizes.rounds):
            yield {**head, **row}


def parity_rows(paths: Sequence[Path], device: str) -> Iterator[dict[str, Any]]:
    """Verify whole models and every layer of them, without TF32 and with the device's default."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.pt"
        for path in paths:
            try:
                k2t.save(k2t.convert(path), out)
                report = k2t.verify(path, out, devices=[device], against="reference")
            except K2TError as refused:
                yield {"model": path.name, "absent": str(refused)}
                continue
            out.unlink()
            yield {
                "model": path.name,
                "ok": report.ok,
                "comparisons": [
                    {"device": c.device, "counts": c.counts, "error": c.max_abs_error, "ok": c.ok}
                    for c in report.comparisons
                ],
            }


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


def what_else_is_missing(found: Mapping[str, Any]) -> list[str]:
    """Return everything in the results of a dry run that is not due to the device."""
    rows, parity = found["rows"], found["parity"]
    wrong = [f"tests: {path}" for path, one in found["tests"].items() if not one["ok"]]
    wrong += [f"{p['model']}: {p.get('absent', 'not equal')}" for p in parity if not p.get("ok")]
    for row in rows:
        absent, name = row.get("absent", ""), f"{row['case']}, {row.get('contender')}"
        if "error" in row and not row.get("ok", True):
            wrong.append(f"{name}: {row['error']:.1e} off")
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
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device: --device cpu --dry-run shows what would run")
    sizes = TINY if args.dry_run else FULL
    paths = models_in(args.models, dry=args.dry_run)
    found: dict[str, Any] = {"facts": facts(args.device), "tests": run_tests(sizes.tests)}
    found["parity"], found["rows"] = list(parity_rows(paths, args.device)), []
    for row in itertools.chain(
        layer_rows(sizes, args.device), model_rows(paths, sizes, args.device)
    ):
        found["rows"].append(row)
        print(row["case"], row.get("contender", ""), row.get("ms", row.get("absent")), flush=True)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = table_of(found["rows"])
    args.table.write_text(table, encoding="utf-8")
    print(table)
    wrong = what_else_is_missing(found)
    if wrong:
        sys.exit("\n".join(wrong))
