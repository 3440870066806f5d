"""Time the stages of a short call of a small model: torch's, the guard, the native program."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import keras2torch_birnn as k2t
from benchmarks.run import RESULTS, facts_of, name_file, write
from benchmarks.tasks import TRAINED, find_architecture
from keras2torch_birnn.bench.case import Model
from keras2torch_birnn.bench.measure import Row, Timing
from keras2torch_birnn.golden import origin

FIXTURES = ("mask_stack_bi_dense", "arch_toxic", "arch_crnn_ocr")
_SMALL = ("ethnicolr", "chars2vec")
_CALLS = 20


def time_stages(model: Any, x: torch.Tensor, rounds: int) -> Mapping[str, Sequence[float]]:
    """Return milliseconds a round of a call, and of what it does: each stage alone, in turns.

    call: of the model, as a user calls it. run: without torch's ``__call__``. guard: whether the
    model is unchanged. program: the native library alone. A model that is no program has the first.
    """
    with torch.inference_mode():
        for _ in range(3):
            model(x)
        recorded: Any = next(iter(model._one_call._found.values()), None)
        stages: dict[str, Callable[[], object]] = {"call": lambda: model(x)}
        if recorded:
            outputs = [torch.empty_like(one) for one in recorded.like]
            addresses = [one.data_ptr() for one in (x, *outputs)]
            stages |= {
                "run": lambda: model._one_call.run(model, (x,), {}),
                "guard": recorded.guard.holds,
                "program": lambda: recorded.program.run(addresses),
            }
        times: dict[str, list[float]] = {name: [] for name in stages}
        for _ in range(rounds):
            for name, stage in stages.items():
                begun = time.perf_counter()
                for _ in range(_CALLS):
                    stage()
                times[name].append((time.perf_counter() - begun) / _CALLS * 1e3)
        return times


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write the times."""
    parser = argparse.ArgumentParser("python -m benchmarks stages", description=__doc__)
    parser.add_argument("--real", type=Path, help="folder of the trained models")
    parser.add_argument("--rounds", type=int, default=51)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    head = facts_of(1, options.rounds)
    file = RESULTS / "stages" / f"{name_file(head)}.json"
    small = [row for row in TRAINED if row[0].startswith(_SMALL)] if options.real else []
    found = [(options.real / name, steps, config) for name, steps, config in small]
    for path, _, config in (*found, *map(find_architecture, FIXTURES)):
        model = k2t.convert(path, config=config and path.with_name(config)).eval()
        x = torch.as_tensor(origin(model).golden.inputs[0])[:1].contiguous()
        times = time_stages(model, x, options.rounds)
        case = Model(path.name, config, "", 1, int(x.shape[1]))
        timings = tuple(Timing(name, "", 0.0, tuple(ms)) for name, ms in times.items())
        print(path.name, {one.contender: round(1e3 * min(one.times_ms), 1) for one in timings})
        write(file, head, Row(case, "cpu", timings), {})
