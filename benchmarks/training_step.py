"""Time of a training step with Keras' Adam, against torch's fused Adam.

    python benchmarks/training_step.py [--rounds 20] [--threads 1]

A Bidirectional LSTM of 128 units on 32 x 128 x 128 inputs with a Dense head: forward, backward and
step. Both take turns, so that a slow moment of the machine hits both; medians in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch import nn

import keras2torch_birnn as k2t
from keras2torch_birnn.trainers.compiled import OptimizerConfig
from keras2torch_birnn.trainers.rules import parse_rule
from keras2torch_birnn.trainers.settings import parse_settings

BATCH, STEPS, FEATURES, UNITS, CLASSES = 32, 128, 128, 128, 10
WARM_UP = 3


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


def make_optimizer(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    """Make Adam of torch, or that of Keras 3."""
    learning = [one for one in model.parameters() if one.requires_grad]
    if kind == "torch":
        return torch.optim.Adam(learning, fused=True)
    config = OptimizerConfig("Adam", {"learning_rate": 1e-3}, "keras3")
    rule = parse_rule(config)
    return k2t.KerasOptimizer(learning, rule, parse_settings(config, rule.known))


def main() -> None:
    """Measure, and print the medians and their ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    models = {kind: Model() for kind in ("torch", "k2t")}
    optimizers = {kind: make_optimizer(kind, model) for kind, model in models.items()}
    x = torch.randn(BATCH, STEPS, FEATURES)
    whole: dict[str, list[float]] = {kind: [] for kind in models}
    update: dict[str, list[float]] = {kind: [] for kind in models}
    for number in range(WARM_UP + args.rounds):
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
    for name, times in (("step", whole), ("optimizer", update)):
        medians = {kind: statistics.median(found) for kind, found in times.items()}
        rows[name] = {**medians, "ratio": medians["k2t"] / medians["torch"]}
    print(json.dumps({"threads": args.threads, "rounds": args.rounds, "ms": rows}, indent=1))


if __name__ == "__main__":
    main()
