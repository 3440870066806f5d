"""Time small models in one call, layer by layer, and what PyTorch takes without Python.

    python benchmarks/eager_floor.py --real FOLDER --json benchmarks/results/eager-floor-DATE.json

The floor of eager PyTorch: the operators between the recurrent layers as ``torch.jit.trace`` and
``freeze`` run them, and the recurrent layers as they are. Medians of the rounds, in turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import cases
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from keras2torch_birnn.api import convert
from keras2torch_birnn.bench.case import Model
from keras2torch_birnn.bench.measure import facts
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.rnn.modules import BidirectionalPair, RecurrentModule

ENOUGH_SECONDS = 0.02
LARGE = ("poreplex", "shakkala", "medaka", "sleepecg")  # whose layers take nearly all of the time


class Empty(nn.Module):
    """A recurrent layer that computes nothing. shapes: of the outputs of each of its calls."""

    def __init__(self, shapes: list[list[torch.Size]]) -> None:
        super().__init__()
        self.calls = itertools.cycle(shapes)

    def forward(self, x: Tensor, mask: Any = None, initial_state: Any = None) -> Any:
        """Return memory for its outputs."""
        found = tuple(x.new_empty(shape) for shape in next(self.calls))
        return found if len(found) > 1 else found[0]


def median_us(run: Callable[[], Any]) -> float:
    """Time a call, repeated for a while."""
    times: list[float] = []
    while sum(times) < ENOUGH_SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:] or times) * 1e6


def without_recurrent_layers(case: Model, inputs: tuple[Tensor, ...]) -> Any:
    """Return the model with recurrent layers that compute nothing."""
    model: Any = convert(case.path, config=case.config)
    recurrent: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, RecurrentModule | BidirectionalPair)
    }
    shapes: dict[str, list[list[torch.Size]]] = {name: [] for name in recurrent}

    def note(name: str) -> Callable[..., None]:
        def hook(_: Any, __: Any, out: Any) -> None:
            shapes[name].append([y.shape for y in (out if isinstance(out, tuple) else (out,))])

        return hook

    for name, module in recurrent.items():
        module.register_forward_hook(note(name))
    model(*inputs)
    for name, found in shapes.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Empty(found))
    model.recompile()
    return model


def by_layers(model: Any) -> Callable[..., Any]:
    """Return the call of a model without its programs."""
    model._one_call = None
    return lambda *inputs: model(*inputs)


def measure(case: Model, rounds: int) -> dict[str, Any]:
    """Time one model."""
    spec = read_model(case.path, config=case.config)
    inputs = tuple(torch.from_numpy(x) for x in draw_inputs(spec, steps=case.time, seed=0))
    model: Any = convert(case.path, config=case.config)
    layers = by_layers(convert(case.path, config=case.config))
    without = without_recurrent_layers(case, inputs)
    between = by_layers(without)
    jit: Any = torch.jit  # which has no types
    traced = jit.freeze(jit.trace(without, inputs, check_trace=False).eval())
    layers(*inputs)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        layers(*inputs)
    runs: dict[str, Callable[[], Any]] = {
        "one call": lambda: model(*inputs),
        "layer by layer": lambda: layers(*inputs),
        "between, from Python": lambda: between(*inputs),
        "between, traced": lambda: traced(*inputs),
    }
    for run in runs.values():
        for _ in range(9):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(median_us(run))
    medians = {name: statistics.median(each) for name, each in times.items()}
    recurrent = medians["layer by layer"] - medians["between, from Python"]
    return {
        "model": Path(case.path).name,
        "operators": sum(event.cpu_parent is None for event in found.events()),
        "recorded": any(isinstance(one, tuple) for one in model._one_call._found.values()),
        "medians_us": medians,
        "floor_us": medians["between, traced"] + recurrent,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, help="folder of the trained models")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--name", default="", help="only files whose names contain this")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    with torch.inference_mode():
        for case in cases(args.real, [1]):
            if args.name in case.path and not Path(case.path).name.startswith(LARGE):
                rows.append(measure(case, args.rounds))
                print(json.dumps(rows[-1]), flush=True)
    if args.json:
        head = facts(args.threads, args.rounds)
        args.json.write_text(json.dumps({"facts": head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
