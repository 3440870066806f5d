"""Time reduced precision against others': errors first, then time.

    python benchmarks/precision.py --threads 1 --json benchmarks/results/precision-DATE.json

Two Bidirectional layers, merged by concat. Every contender computes the same weights in a process
of its own, idle while another is timed; the rounds go round robin. Reduced precision has no
parity to assert: the error against float64 stands beside each time, and a contender of float32
must have the error of float32. Wanted: k2t at most 1.0 of each peer with an equal or smaller error.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from keras2torch_birnn.bench.by_onnx import stack_model
from keras2torch_birnn.bench.case import (
    CLASSES,
    Stack,
    exact,
    from_json,
    input_of,
    layers_of,
    to_json,
)
from keras2torch_birnn.rnn.bidirectional import BiGRU, BiLSTM
from keras2torch_birnn.rnn.native.codes import REDUCED
from keras2torch_birnn.rnn.native.precision import reduced_kernel
from keras2torch_birnn.rnn.parameters import torch_parameters
from keras2torch_birnn.rnn.precision_settings import set_precision
from keras2torch_birnn.spec import Array

# batch, time, input, units
SHAPES = ((1, 64, 64, 64), (8, 100, 128, 128), (32, 128, 128, 128), (64, 100, 256, 256))
CELLS = ("lstm", "gru")
OURS, BY_HAND = {"lstm": BiLSTM, "gru": BiGRU}, {"lstm": nn.LSTM, "gru": nn.GRU}
ROUNDS_SECONDS = 0.05  # a round repeats short calls for so long

Run = Callable[[], Array]


def parameters(stack: Stack) -> dict[str, torch.Tensor]:
    """Return the weights by torch's names."""
    found: dict[str, torch.Tensor] = {}
    for number, layer in enumerate(layers_of(stack)):
        for half, suffix in zip(layer.parts.values(), ("", "_reverse"), strict=True):
            for name, array in torch_parameters(half, suffix).items():
                value = torch.from_numpy(np.asarray(array))
                found[name.replace("_l0", f"_l{number}")] = value
    return found


def module_of(stack: Stack, classes: Mapping[str, Any]) -> nn.Module:
    """Build the stack by one of the classes."""
    made: nn.Module
    options = {"batch_first": True, "bidirectional": True}
    made = classes[stack.rnn](stack.features, stack.units, stack.layers, **options)
    missing = {name: torch.zeros_like(value) for name, value in made.state_dict().items()}
    made.load_state_dict({**missing, **parameters(stack)})
    return made.eval()


def call_of(module: nn.Module, stack: Stack) -> Run:
    """Return a call without gradients."""
    x = torch.from_numpy(input_of(stack))

    def run() -> Array:
        with torch.inference_mode():
            return np.asarray(module(x)[0])

    return run


def by_k2t(stack: Stack, precision: Any, _: int) -> Run:
    """Run k2t in a precision."""
    module = module_of(stack, OURS)
    set_precision(module, precision)
    return call_of(module, stack)


def by_torch(stack: Stack, precision: str, _: int) -> Run:
    """Run torch's layer, in int8 by quantize_dynamic."""
    module = module_of(stack, BY_HAND)
    if precision == "int8":
        import warnings

        warnings.simplefilter("ignore")
        quantize = torch.ao.quantization.quantize_dynamic
        module = quantize(nn.ModuleList([module]), {nn.LSTM, nn.GRU}, dtype=torch.qint8)[0]
    return call_of(module, stack)


def by_onnxruntime(stack: Stack, precision: str, threads: int) -> Run:
    """Run ONNX Runtime, in int8 by quantize_dynamic: DynamicQuantizeLSTM; it has none for GRU."""
    import onnxruntime

    model = stack_model(stack)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        file, smaller = Path(folder, "model.onnx"), Path(folder, "int8.onnx")
        file.write_bytes(model.SerializeToString())
        if precision == "int8":
            import onnx
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(file, smaller, per_channel=True, weight_type=QuantType.QInt8)
            kinds = {node.op_type for node in onnx.load(smaller).graph.node}
            if CLASSES[stack.rnn] in kinds:
                raise ValueError(f"quantize_dynamic leaves {CLASSES[stack.rnn]} in float32")
            file = smaller
        session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    feeds = {"x": input_of(stack)}
    return lambda: session.run(None, feeds)[0]


def by_openvino(stack: Stack, precision: str, threads: int) -> Run:
    """Run OpenVINO in float32, or as it chooses: bfloat16 where the processor has instructions."""
    import openvino

    core = openvino.Core()
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision == "float32":
        options["INFERENCE_PRECISION_HINT"] = "f32"
    model = core.read_model(model=stack_model(stack).SerializeToString())
    compiled = core.compile_model(model, "CPU", options)
    request, x = compiled.create_infer_request(), input_of(stack)
    return lambda: request.infer([x])[0].copy()


# name -> function, precision
CONTENDERS: Mapping[str, tuple[Callable[[Stack, Any, int], Run], str]] = {
    "k2t float32": (by_k2t, "float32"),
    "k2t bfloat16": (by_k2t, "bfloat16"),
    "k2t int8": (by_k2t, "int8"),
    "torch float32": (by_torch, "float32"),
    "torch quantize_dynamic": (by_torch, "int8"),
    "ONNX Runtime float32": (by_onnxruntime, "float32"),
    "ONNX Runtime int8": (by_onnxruntime, "int8"),
    "OpenVINO float32": (by_openvino, "float32"),
    "OpenVINO default": (by_openvino, "default"),
}
FLOAT32_ERROR = 1e-5


def work(name: str, case: str, threads: int) -> None:
    """Be the process of a contender: answer with its error, then with milliseconds."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    stack = from_json(Path(case).read_text(encoding="utf-8"))
    prepare, precision = CONTENDERS[name]
    try:
        if not isinstance(stack, Stack):
            raise TypeError("a stack is expected")
        run = prepare(stack, precision, threads)
        wanted = np.load(Path(case).with_name("exact.npy"))
        error = run() - wanted
        relative = float(np.sqrt(np.mean(error**2)) / np.sqrt(np.mean(wanted**2)))
        found = {"max_error": float(np.abs(error).max()), "relative_error": relative}
        if precision == "float32" and not found["max_error"] < FLOAT32_ERROR:
            raise ValueError(f"an error of {found['max_error']:.1e} in float32")
    except Exception as error:  # whatever a library raises: the table tells, the others go on
        lines = str(error).strip().splitlines()
        answers.write(
            json.dumps({"absent": f"{type(error).__name__}: {lines[-1] if lines else ''}"})
        )
        answers.write("\n")
        return
    answers.write(json.dumps(found) + "\n")
    for _ in sys.stdin:
        begun, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < ROUNDS_SECONDS or not count:
            run()
            count += 1
        answers.write(json.dumps({"ms": 1e3 * spent / count}) + "\n")


def measure(stack: Stack, threads: int, rounds: int, names: list[str]) -> dict[str, Any]:
    """Measure one case: errors, then interleaved rounds."""
    with tempfile.TemporaryDirectory() as folder:
        case = Path(folder, "case.json")
        case.write_text(to_json(stack), encoding="utf-8")
        np.save(Path(folder, "exact.npy"), exact(stack))
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        workers = {
            name: subprocess.Popen(
                [sys.executable, __file__, "--worker", name, str(case), "--threads", str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            for name in names
        }

        def ask(name: str, text: str = "\n") -> dict[str, Any]:
            worker = workers[name]
            if worker.stdin is None or worker.stdout is None:
                raise TypeError("a worker has pipes")
            worker.stdin.write(text)
            worker.stdin.flush()
            line = worker.stdout.readline()
            answer: dict[str, Any] = json.loads(line) if line else {"absent": "its process ended"}
            return answer

        results = {name: ask(name, "") for name in names}
        there = [name for name in names if "absent" not in results[name]]
        times: dict[str, list[float]] = {name: [] for name in there}
        for number in range(rounds):
            first = number % len(there)
            for name in there[first:] + there[:first]:
                time.sleep(0.02)  # threads of the one before go on looking for work
                times[name].append(ask(name)["ms"])
        for worker in workers.values():
            if worker.stdin:
                worker.stdin.close()
            worker.wait()
    for name, found in times.items():
        results[name] |= {"times_ms": found, "median_ms": statistics.median(found)}
    return {"case": json.loads(to_json(stack)), "label": stack.label, "contenders": results}


def facts(rounds: int) -> dict[str, Any]:
    """Return machine, versions and settings."""
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = {key.strip(): value.strip() for key, _, value in (one.partition(":") for one in lines)}
    wanted = ("avx512_bf16", "avx512_vnni", "avx_vnni", "amx_tile")
    return {
        "processor": " ".join(cpu.get(k, "") for k in ("vendor_id", "cpu family", "model")),
        "instructions": [flag for flag in wanted if flag in cpu.get("flags", "").split()],
        "kernels": {precision: reduced_kernel(precision).name for precision in REDUCED},
        "rounds": rounds,
        "python": platform.python_version(),
        "versions": {p: version(p) for p in ("torch", "onnxruntime", "openvino", "numpy")},
    }


def main() -> None:
    """Measure, print, write after every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", nargs="+", type=int, default=list(range(len(SHAPES))))
    parser.add_argument("--cell", nargs="+", default=list(CELLS), choices=CELLS)
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2)
    args = parser.parse_args()
    if args.worker:
        contender, case = args.worker
        return work(contender, case, args.threads)
    head = facts(args.rounds)
    rows = []
    if args.json and args.json.exists():  # measured in parts; the same case again replaces the old
        rows = json.loads(args.json.read_text(encoding="utf-8"))["rows"]
    print(json.dumps(head))
    for shape, cell in itertools.product(args.shapes, args.cell):
        stack = Stack(cell, "concat", 2, *SHAPES[shape])
        row = measure(stack, args.threads, args.rounds, args.only) | {"threads": args.threads}
        keys = ("label", "threads")
        rows = [old for old in rows if any(old[k] != row[k] for k in keys)] + [row]
        print(row["label"])
        for name, found in row["contenders"].items():
            shown = found.get("absent") or (
                f"{found['median_ms']:9.3f} ms  error {found['relative_error']:.1e}"
            )
            print(f"    {name:24} {shown}", flush=True)
        if args.json:
            args.json.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n", "utf-8")
    return None


if __name__ == "__main__":
    main()
