"""Time of a training step with Keras' optimizers, against torch's fused ones.

    python benchmarks/training_step.py [--rounds 20] [--threads 1]

A Bidirectional LSTM of 128 units on 32 x 128 x 128 inputs with a Dense head: forward, backward and
step. Both take turns, so that a slow moment of the machine hits both; medians in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

import keras2torch_birnn as k2t
from keras2torch_birnn.trainers.compiled import OptimizerConfig
from keras2torch_birnn.trainers.rules import parse_rule
from keras2torch_birnn.trainers.settings import parse_settings

BATCH, STEPS, FEATURES, UNITS, CLASSES = 32, 128, 128, 128, 10
WARM_UP = 3
# By Keras' name: its options, and the fused optimizer of torch. Rules differ, but not their work.
OPTIMIZERS: Mapping[str, tuple[Mapping[str, Any], Callable[..., torch.optim.Optimizer]]] = {
    "Adam": ({"learning_rate": 1e-3}, partial(torch.optim.Adam, lr=1e-3)),
    "AdamW": (
        {"learning_rate": 1e-3, "weight_decay": 0.01},
        partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.01),
    ),
    "SGD": (
        {"learning_rate": 1e-3, "momentum": 0.9},
        partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    ),
    "Adagrad": ({"learning_rate": 1e-3}, partial(torch.optim.Adagrad, lr=1e-3)),
}


class Model(nn.Module):
    """The last step of a Bidirectional LSTM, and a Dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = k2t.BiLSTM(FEATURES, UNITS)
        self.head = nn.Linear(2 * UNITS, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores, (batch, classes)."""
        found: torch.Tensor = self.head(self.rnn(x)[0])
        return found


def make_optimizer(kind: str, name: str, model: nn.Module) -> torch.optim.Optimizer:
    """Make an optimizer of torch, or that of Keras 3."""
    learning = [one for one in model.parameters() if one.requires_grad]
    options, fused = OPTIMIZERS[name]
    if kind == "torch":
        return fused(learning, fused=True)
    config = OptimizerConfig(name, options, "keras3")
    rule = parse_rule(config)
    return k2t.KerasOptimizer(learning, rule, parse_settings(config, rule.known))


def measure(name: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return medians and ratios of whole steps and of the optimizer's part."""
    torch.manual_seed(0)
    models = {kind: Model() for kind in ("torch", "k2t")}
    optimizers = {kind: make_optimizer(kind, name, model) for kind, model in models.items()}
    x = torch.randn(BATCH, STEPS, FEATURES)
    whole: dict[str, list[float]] = {kind: [] for kind in models}
    update: dict[str, list[float]] = {kind: [] for kind in models}
    for number in range(WARM_UP + rounds):
        for kind, model in models.items():
            start = time.perf_counter()
            optimizers[kind].zero_grad()
            model(x).square().mean().backward()
            middle = time.perf_counter()
            optimizers[kind].step()
            end = time.perf_counter()
            if number >= WARM_UP:
                whole[kind].append(1000 * (end - start))
                update[kind].append(1000 * (end - middle))
    rows = {}
    for part, times in (("step", whole), ("optimizer", update)):
        medians = {kind: statistics.median(found) for kind, found in times.items()}
        rows[part] = {**medians, "ratio": medians["k2t"] / medians["torch"]}
    return rows


def main() -> None:
    """Measure, and print the medians and their ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {name: measure(name, args.rounds) for name in OPTIMIZERS}
    facts = {"threads": args.threads, "rounds": args.rounds, "torch": torch.__version__}
    print(json.dumps({**facts, "ms": found}, indent=1))


if __name__ == "__main__":
    main()
