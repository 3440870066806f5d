"""Updates of given gradients by optimizers of real Keras, and by k2t: ``fixtures/rules``."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from specs import FIXTURES
from torch import nn

from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.trainers.compiled import OptimizerConfig, parse_compiled
from keras2torch_birnn.trainers.optimizer import KerasOptimizer
from keras2torch_birnn.trainers.rules import parse_rule
from keras2torch_birnn.trainers.settings import parse_settings
from keras2torch_birnn.trainers.variables import Variable

RECORDED = {path.stem: dict(np.load(path)) for path in sorted((FIXTURES / "rules").glob("*.npz"))}
INFO = {label: json.loads(str(found["info"])) for label, found in RECORDED.items()}
CASES = [
    (label, case.removeprefix("float64/"))
    for label, info in INFO.items()
    for case, facts in info.items()
    if case.startswith("float64/") and "config" in facts
]
SHAPES, STEPS = {"kernel": (3, 5), "bias": (7,), "other": (2, 11)}, 25
# Those of rules that ask for the axes of a variable, or for its name.
MORE_SHAPES: dict[str, tuple[int, ...]] = {
    **SHAPES,
    "embedding": (11, 3),
    "conv": (2, 3, 5),
    "planes": (2, 5, 3, 7),
    "head": (11, 2),
    "square": (5, 5),
}


def skip_other_norms(label: str, case: str) -> None:
    """Skip a case in float64 that divides by a norm in float32, where torch rounds that otherwise.

    Keras on torch has torch's own norm: with an old torch it is another than the recorded one, too.
    """
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if label.endswith("-torch") and case.startswith("muon") and version < (2, 13):
        pytest.skip("recorded with a newer torch, whose norms in float32 may differ by a bit")


def config_of(label: str, case: str, floats: str = "float64") -> OptimizerConfig:
    """Return an optimizer as its Keras wrote it."""
    info = INFO[label]
    found = {"optimizer": info[f"{floats}/{case}"]["config"]}
    generation = generation_of(info["version"])
    return parse_compiled(found, generation, info.get("backend", "")).optimizer


def optimizer_of(config: OptimizerConfig, params: dict[str, nn.Parameter]) -> KerasOptimizer:
    """Make the optimizer in torch, of variables with these names."""
    rule = parse_rule(config)
    named = [Variable.of(param, i, name) for i, (name, param) in enumerate(params.items())]
    settings = parse_settings(config, rule.known())
    return KerasOptimizer(params.values(), rule, settings, variables=named)


def largest_difference(label: str, case: str, floats: str) -> float:
    """Take all steps; return how far any weight was from Keras' after the recorded ones."""
    rng = np.random.RandomState(7)
    config = config_of(label, case, floats)
    whole = config.class_name in ("Muon", "Adafactor")
    shapes: dict[str, Any] = MORE_SHAPES if whole else SHAPES
    drawn = {name: rng.normal(size=shape).astype(floats) for name, shape in shapes.items()}
    params = {name: nn.Parameter(torch.from_numpy(one)) for name, one in drawn.items()}
    optimizer = optimizer_of(config, params)
    differences = []
    for step in range(STEPS):
        for param, shape in zip(params.values(), shapes.values(), strict=True):
            grad = (rng.normal(size=shape) * (0.3 + step % 3)).astype(floats)
            param.grad = torch.from_numpy(grad)
        optimizer.step()
        key = f"{floats}/{case}/{step}"
        if key in RECORDED[label]:
            now = np.concatenate([param.detach().numpy().ravel() for param in params.values()])
            differences.append(np.abs(now - RECORDED[label][key]).max())
    assert optimizer.iterations == STEPS
    assert differences
    return float(np.max(differences))
