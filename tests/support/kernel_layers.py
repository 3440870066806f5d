"""Recurrent layers for tests of the native kernel, and what they ought to give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from specs import CELLS, KERAS3, layer
from torch import Tensor

from keras2torch_birnn.layers.recurrent import bidirectional, recurrent
from keras2torch_birnn.reference import EQUATIONS
from keras2torch_birnn.reference.context import Context
from keras2torch_birnn.rnn.engines import native as native_engine
from keras2torch_birnn.rnn.layer import RnnCall
from keras2torch_birnn.rnn.native import codes, library, op
from keras2torch_birnn.schema import CELL_GATES
from keras2torch_birnn.schema.merge_modes import MERGE_MODES
from keras2torch_birnn.spec import Array, LayerSpec

WHY_MISSING = library.why_missing()
native = pytest.mark.skipif(bool(WHY_MISSING), reason=f"no kernel: {WHY_MISSING}")
# Of set_precision, "float32" among them: those that this processor has instructions for.
PRECISIONS = [one for one in codes.PRECISIONS if not WHY_MISSING and library.find_sets(one)]
reduced = pytest.mark.skipif(PRECISIONS != list(codes.PRECISIONS), reason="no instructions for it")

# Keras' gate at each place of torch's: Keras lists z, r, h, torch r, z, n.
TORCH_GATES = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "SimpleRNN": (0,)}
# Gates between 0 and 1: with others a random net explodes, in float64 too.
GATES = ("sigmoid", "hard_sigmoid_0.2", "hard_sigmoid_1/6")
RULES = ("zeros", "previous_output", "previous_state")
# Of the largest output. Sums of float32 products in another order than float64's.
TOLERANCE = 2e-6


def half(cell: str, units: int, features: int, seed: int, **config: Any) -> LayerSpec:
    """Make one direction: random weights, biases included, too small to make the net chaotic.

    Its activations are tanh and sigmoid unless others are asked for.
    """
    class_name, _, before = cell.partition(" ")
    rng = np.random.default_rng(seed)
    if class_name == "GRU":
        config["reset_after"] = not before
    if class_name == "SimpleRNN":
        config.pop("recurrent_activation", None)
    else:
        config.setdefault("recurrent_activation", "sigmoid")
    width = CELL_GATES[class_name] * units
    shapes: dict[str, Any] = {
        "kernel": (features, width),
        "recurrent_kernel": (units, width),
        "bias": (2, width) if config.get("reset_after") else (width,),
    }
    scales = {"kernel": features**-0.5, "recurrent_kernel": 0.5 * units**-0.5, "bias": 0.5}
    weights = {n: (rng.normal(size=s) * scales[n]).astype("f4") for n, s in shapes.items()}
    if not config.get("use_bias", True):
        del weights["bias"]
    options = {"masked_output": "zeros", "return_sequences": True, **config, "units": units}
    return layer(class_name, f"{class_name.lower()}_{seed}", weights, **options)


def both(cell: str, units: int, features: int, merge: str | None, **config: Any) -> LayerSpec:
    forward = half(cell, units, features, 1, **config)
    backward = half(cell, units, features, 2, **{**config, "go_backwards": True})
    halves = {"forward_layer": forward, "backward_layer": backward}
    return layer("Bidirectional", "bi", merge_mode=merge, **halves)


def reference(spec: LayerSpec, x: Array, mask: Array | None, state: Any = None) -> list[Array]:
    context = Context(KERAS3, np.float64, EQUATIONS, {}, {}, None)
    output, _ = EQUATIONS[spec.class_name](spec, x, mask, context.starting(state))
    return list(output) if isinstance(output, tuple) else [output]


def assert_close(got: Any, wanted: Any, tolerance: float = TOLERANCE) -> None:
    """Compare one output or several, tensors or arrays; tolerance: of the largest number."""
    given = [one if isinstance(one, tuple | list) else (one,) for one in (got, wanted)]
    for pair in zip(*given, strict=True):
        tensors = [x if isinstance(x, Tensor) else torch.from_numpy(x.copy()) for x in pair]
        a, b = (x.detach().cpu().double() for x in tensors)
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "cell": draw(st.sampled_from(CELLS)),
        "activation": draw(st.sampled_from(list(codes.ACTIVATIONS))),
        "recurrent_activation": draw(st.sampled_from(GATES)),
        "merge": draw(st.sampled_from((*MERGE_MODES, None, "one", "back"))),
        "units": draw(st.sampled_from((1, 7, 16, 31, 100, 257))),
        "features": draw(st.sampled_from((1, 5, 40))),
        "batch": draw(st.sampled_from((1, 2, 5, 8, 33))),
        "time": draw(st.sampled_from((1, 2, 13))),
        "threads": draw(st.sampled_from((1, 2))),
        "masked": draw(st.booleans()),
        "rule": draw(st.sampled_from(RULES)),
        "state": draw(st.booleans()),
        "return_sequences": draw(st.booleans()),
        "use_bias": draw(st.booleans()),
        "rates": draw(st.sampled_from(((0.0, 0.0), (0.4, 0.0), (0.0, 0.3), (0.4, 0.3)))),
        "implementation": draw(st.sampled_from((1, 2))),
        "seed": draw(st.integers(0, 99)),
    }


def layer_of(case: Mapping[str, Any]) -> tuple[Callable[[LayerSpec], Any], LayerSpec]:
    """Return the function that builds a case's module, and the layer."""
    config = {
        key: case[key]
        for key in (
            *("activation", "recurrent_activation", "return_sequences", "use_bias"),
            "implementation",
        )
    }
    config["dropout"], config["recurrent_dropout"] = case["rates"]  # in training mode
    config |= {"return_state": True, "masked_output": case["rule"]}
    cell, merge, units, features = (case[k] for k in ("cell", "merge", "units", "features"))
    if merge in ("one", "back"):
        return recurrent, half(cell, units, features, 1, go_backwards=merge == "back", **config)
    return bidirectional, both(cell, units, features, merge, **config)


def gru(**config: Any) -> tuple[Any, Tensor]:
    spec = both("GRU", 24, 5, "sum", **config)
    return bidirectional(spec), torch.randn(3, 11, 5, generator=torch.Generator().manual_seed(0))


def calls_of_native(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the batches that reach the native kernel from now on."""
    seen: list[int] = []

    def counted(layer: Any, call: RnnCall) -> Any:
        seen.append(call.x.shape[0])
        return op.run_native(layer, call)

    monkeypatch.setattr(native_engine, "run_native", counted)
    return seen


def gradients_by_native(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the batches whose gradient the native kernel computes from now on."""
    seen: list[int] = []
    original = native_engine.gradient

    def counted(layer: Any, call: RnnCall, *rest: Any, **keywords: Any) -> Any:
        seen.append(call.x.shape[0])
        return original(layer, call, *rest, **keywords)

    monkeypatch.setattr(native_engine, "gradient", counted)
    return seen
