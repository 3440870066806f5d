"""Engines against each other and against peers: two bidirectional layers, float32 inference on CPU.

    python benchmarks/engine.py --threads 2 --json benchmarks/results/NAME.json

Every contender computes the same weights; parity is asserted before anything is timed; the rounds
go round robin in one process. ``--clock cpu`` counts the process' CPU time instead of the wall's:
with one thread it says the same and does not mind other programs on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from keras2torch_birnn.reference import EQUATIONS
from keras2torch_birnn.reference.context import Context
from keras2torch_birnn.rnn.layers import bidirectional
from keras2torch_birnn.rnn.merge import MERGE
from keras2torch_birnn.rnn.native.library import instruction_set, missing
from keras2torch_birnn.rnn.parameters import torch_parameters
from keras2torch_birnn.schema import CELL_GATES, REQUIRED, SCHEMA
from keras2torch_birnn.spec import Array, Generation, LayerSpec

# name -> class, recurrent_activation, reset_after
CELLS: Mapping[str, tuple[str, str, bool]] = {
    "LSTM": ("LSTM", "sigmoid", False),
    "GRU reset_after": ("GRU", "sigmoid", True),
    "LSTM hard_sigmoid": ("LSTM", "hard_sigmoid_0.2", False),
    "GRU before hard_sigmoid": ("GRU", "hard_sigmoid_0.2", False),
}
# batch, time, input, units
SHAPES = (
    (1, 64, 64, 64),
    (1, 200, 300, 256),
    (8, 100, 128, 128),
    (32, 128, 128, 128),
    (64, 256, 256, 256),
)
LAYERS = 2
TOLERANCE = 2e-6
GENERATION = Generation("keras3", "3.15.1", "hard_sigmoid_1/6", "sigmoid", True, "zeros")

Runner = Callable[[], Array]


# ---- the model -----------------------------------------------------------------------------------


def half(cell: str, features: int, units: int, rng: np.random.Generator, back: bool) -> LayerSpec:
    """One direction with random weights."""
    class_name, gate, after = CELLS[cell]
    width = CELL_GATES[class_name] * units
    config = {k: o.default for k, o in SCHEMA[class_name].options.items() if o.default != REQUIRED}
    config |= {"units": units, "activation": "tanh", "recurrent_activation": gate}
    config |= {"return_sequences": True, "go_backwards": back, "masked_output": "zeros"}
    if class_name == "GRU":
        config["reset_after"] = after
    shapes = {
        "kernel": (features, width),
        "recurrent_kernel": (units, width),
        "bias": (2, width) if class_name == "GRU" and after else (width,),
    }
    weights = {n: (rng.normal(size=s) * units**-0.5).astype("f4") for n, s in shapes.items()}
    return LayerSpec(class_name, "half", config, weights)


def stack(cell: str, merge: str, features: int, units: int) -> list[LayerSpec]:
    """The layers, each a Bidirectional."""
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(LAYERS):
        forward, backward = (half(cell, features, units, rng, back) for back in (False, True))
        parts = {"forward_layer": forward, "backward_layer": backward}
        layers.append(LayerSpec("Bidirectional", "bi", {"merge_mode": merge}, {}, parts))
        features = units
    return layers


def exact(layers: list[LayerSpec], x: Array) -> Array:
    """The stack in float64 by the reference."""
    context = Context(GENERATION, np.float64, EQUATIONS, {}, {}, None)
    for layer in layers:
        x, _ = EQUATIONS["Bidirectional"](layer, x, None, context)
    return x


# ---- contenders: each gives a function without arguments, or None where it cannot run ------------


def engine(name: str) -> Callable[..., Runner | None]:
    """Our modules by one engine."""

    def prepare(layers: list[LayerSpec], x: Array, threads: int) -> Runner | None:
        if name == "native" and missing():
            return None
        modules: list[Any] = [bidirectional(layer) for layer in layers]
        given = torch.from_numpy(x)

        def run() -> Array:
            os.environ["K2T_ENGINE"] = name
            out = given
            with torch.inference_mode():
                for module in modules:
                    out = module(out)
            return out.numpy()

        return run

    return prepare


def torch_per_layer(layers: list[LayerSpec], x: Array, threads: int) -> Runner | None:
    """What one writes by hand: an nn.LSTM or nn.GRU per layer, and the merge."""
    first = layers[0].parts["forward_layer"]
    gate, after = first.config["recurrent_activation"], first.config.get("reset_after", True)
    if gate != "sigmoid" or not after:
        return None
    modules: list[Any] = []
    for layer in layers:
        state = torch_parameters(layer.parts["forward_layer"])
        state |= torch_parameters(layer.parts["backward_layer"], "_reverse")
        features, units = state["weight_ih_l0"].shape[1], first.config["units"]
        made: Any = getattr(nn, first.class_name)
        module = made(features, units, batch_first=True, bidirectional=True)
        zeros = {k: torch.zeros_like(v) for k, v in module.state_dict().items()}
        given = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()}
        module.load_state_dict(zeros | given)
        modules.append((module, MERGE[layer.config["merge_mode"]]))
    start = torch.from_numpy(x)

    def run() -> Array:
        out = start
        with torch.inference_mode():
            for module, merge in modules:
                out = merge(*module(out)[0].chunk(2, dim=2))
        return out.numpy()

    return run


def onnx_runtime(layers: list[LayerSpec], x: Array, threads: int) -> Runner | None:
    """ONNX Runtime on the operators LSTM and GRU, time first as it wants them."""
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return None
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants = [helper.make_node("Transpose", ["x"], ["t0"], perm=[1, 0, 2])], []

    def constant(name: str, value: Array) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    for i, layer in enumerate(layers):
        halves = layer.parts.values()
        first = layer.parts["forward_layer"]
        # Keras' gates i f c o and z r h; ONNX' i o f c and z r h
        order = (0, 3, 1, 2) if first.class_name == "LSTM" else (0, 1, 2)

        def gates(array: Array, order: tuple[int, ...] = order) -> Array:
            parts = np.split(array, len(order), axis=-1)
            return np.concatenate([parts[g] for g in order], axis=-1)

        w = np.stack([gates(h.weights["kernel"]).T for h in halves])
        r = np.stack([gates(h.weights["recurrent_kernel"]).T for h in halves])
        biases = [gates(h.weights["bias"]).reshape(-1, w.shape[1]) for h in halves]
        b = np.stack(
            [np.concatenate((*b, np.zeros(w.shape[1], "f4")))[: 2 * w.shape[1]] for b in biases]
        )
        inputs = [f"t{i}", constant(f"w{i}", w), constant(f"r{i}", r), constant(f"b{i}", b)]
        options: dict[str, Any] = {"direction": "bidirectional", "hidden_size": r.shape[2]}
        if first.class_name == "GRU":
            options["linear_before_reset"] = int(first.config["reset_after"])
        if first.config["recurrent_activation"] == "hard_sigmoid_0.2":
            one = ["HardSigmoid", "Tanh", "Tanh"][: 3 if first.class_name == "LSTM" else 2]
            options |= {"activations": one * 2}
            options |= {"activation_alpha": [0.2, 0.2], "activation_beta": [0.5, 0.5]}
        nodes.append(helper.make_node(first.class_name, inputs, [f"y{i}"], **options))
        nodes.append(
            helper.make_node("Split", [f"y{i}"], [f"f{i}", f"g{i}"], axis=1, num_outputs=2)
        )
        merge = {"mul": "Mul", "sum": "Add"}[layer.config["merge_mode"]]
        nodes.append(helper.make_node(merge, [f"f{i}", f"g{i}"], [f"m{i}"]))
        axes = constant(f"a{i}", np.array([1], dtype=np.int64))
        nodes.append(helper.make_node("Squeeze", [f"m{i}", axes], [f"t{i + 1}"]))
    nodes.append(helper.make_node("Transpose", [f"t{len(layers)}"], ["out"], perm=[1, 0, 2]))
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options_ = onnxruntime.SessionOptions()
    options_.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options_)

    def run() -> Array:
        (out,) = session.run(None, {"x": x})
        return np.asarray(out)

    return run


CONTENDERS: Mapping[str, Callable[..., Runner | None]] = {
    "native": engine("native"),
    "torch per layer": torch_per_layer,
    "loop": engine("loop"),
    "ONNX Runtime": onnx_runtime,
}


# ---- measuring -----------------------------------------------------------------------------------


def measure(
    cell: str, merge: str, shape: tuple[int, ...], threads: int, rounds: int, clock: str
) -> dict[str, Any]:
    """Times of all contenders in milliseconds, parity asserted."""
    batch, steps, features, units = shape
    layers = stack(cell, merge, features, units)
    x = np.random.default_rng(1).normal(size=(batch, steps, features)).astype("f4")
    wanted = exact(layers, x)
    now = time.process_time if clock == "cpu" else time.perf_counter
    runners, errors = {}, {}
    for name, prepare in CONTENDERS.items():
        if (run := prepare(layers, x, threads)) is not None:
            scale = max(1.0, float(np.abs(wanted).max()))
            errors[name] = float(np.abs(run() - wanted).max()) / scale
            assert errors[name] <= TOLERANCE, f"{name} is off by {errors[name]:.1e}"
            runners[name] = run
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            start = now()
            run()
            times[name].append((now() - start) * 1e3)
    return {
        "cell": cell,
        "merge": merge,
        "shape": shape,
        "errors": errors,
        "median_ms": {name: statistics.median(t) for name, t in times.items()},
        "best_ms": {name: min(t) for name, t in times.items()},
        "times_ms": times,
        "load_average": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """What ran."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if find_spec("onnxruntime") is not None:
        import onnxruntime

        found["onnxruntime"] = onnxruntime.__version__
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--merge", nargs="+", default=["mul", "sum"])
    parser.add_argument("--cell", nargs="+", default=list(CELLS))
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="only the first N")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    facts = {
        "versions": versions(),
        "threads": args.threads,
        "clock": args.clock,
        "rounds": args.rounds,
        "instruction_set": None if missing() else instruction_set(),
        "processors": os.cpu_count(),
    }
    print(facts)
    print(
        f"{'cell':24} {'merge':5} {'shape':20} " + " ".join(f"{n:>15}" for n in CONTENDERS), end=""
    )
    print("   native / torch, / ONNX Runtime (medians)")
    rows = []
    for shape in SHAPES[: args.shapes]:
        for cell in args.cell:
            for merge in args.merge:
                row = measure(cell, merge, shape, args.threads, args.rounds, args.clock)
                rows.append(row)
                m = row["median_ms"]
                shown = " ".join(f"{m[n]:15.3f}" if n in m else f"{'-':>15}" for n in CONTENDERS)
                ratios = [
                    f"{m['native'] / m[n]:6.2f}" if n in m and "native" in m else "     -"
                    for n in ("torch per layer", "ONNX Runtime")
                ]
                name = "x".join(map(str, shape))
                print(f"{cell:24} {merge:5} {name:20} {shown}   {' '.join(ratios)}", flush=True)
                if args.json:
                    args.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
