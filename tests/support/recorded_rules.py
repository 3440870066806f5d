"""Updates of given gradients by optimizers of real Keras, and by k2t: ``fixtures/rules``."""

from __future__ import annotations

import json

import numpy as np
import torch
from specs import FIXTURES
from torch import nn

from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.trainers.compiled import OptimizerConfig, parse_compiled
from keras2torch_birnn.trainers.optimizer import KerasOptimizer
from keras2torch_birnn.trainers.rules import parse_rule
from keras2torch_birnn.trainers.settings import parse_settings

RECORDED = {path.stem: dict(np.load(path)) for path in sorted((FIXTURES / "rules").glob("*.npz"))}
INFO = {label: json.loads(str(found["info"])) for label, found in RECORDED.items()}
CASES = [
    (label, case.removeprefix("float64/"))
    for label, info in INFO.items()
    for case, facts in info.items()
    if case.startswith("float64/") and "config" in facts
]
SHAPES, STEPS = ((3, 5), (7,), (2, 11)), 25


def config_of(label: str, case: str, floats: str = "float64") -> OptimizerConfig:
    """Return an optimizer as its Keras wrote it."""
    info = INFO[label]
    found = {"optimizer": info[f"{floats}/{case}"]["config"]}
    generation = generation_of(info["version"])
    return parse_compiled(found, generation, info.get("backend", "")).optimizer


def optimizer_of(config: OptimizerConfig, params: list[nn.Parameter]) -> KerasOptimizer:
    """Make the optimizer in torch."""
    rule = parse_rule(config)
    return KerasOptimizer(params, rule, parse_settings(config, rule.known))


def largest_difference(label: str, case: str, floats: str) -> float:
    """Take all steps; return how far any weight was from Keras' after the recorded ones."""
    rng = np.random.RandomState(7)
    drawn = [rng.normal(size=shape).astype(floats) for shape in SHAPES]
    params = [nn.Parameter(torch.from_numpy(one)) for one in drawn]
    optimizer = optimizer_of(config_of(label, case, floats), params)
    differences = []
    for step in range(STEPS):
        for param, shape in zip(params, SHAPES, strict=True):
            grad = (rng.normal(size=shape) * (0.3 + step % 3)).astype(floats)
            param.grad = torch.from_numpy(grad)
        optimizer.step()
        key = f"{floats}/{case}/{step}"
        if key in RECORDED[label]:
            now = np.concatenate([param.detach().numpy().ravel() for param in params])
            differences.append(np.abs(now - RECORDED[label][key]).max())
    assert optimizer.iterations == STEPS
    assert differences
    return float(np.max(differences))
