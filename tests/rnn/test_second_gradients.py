"""Gradients are exact in float64; those of gradients are torch's, and refused by the kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_layers import CELLS, assert_close, both, native
from sampling import rest_thorough
from torch import Tensor

import keras2torch_birnn as k2t
from keras2torch_birnn.layers.recurrent import bidirectional
from keras2torch_birnn.rnn.engines import loop
from keras2torch_birnn.rnn.engines import native as native_engine
from keras2torch_birnn.rnn.engines.select import draw_masks
from keras2torch_birnn.rnn.layer import (
    RnnCall,
    RnnLayer,
    float_tensors,
    with_float_tensors,
)

pytestmark = [native, pytest.mark.usefixtures("native_where_it_pays")]
UNITS, FEATURES, BATCH, TIME = 3, 2, 2, 5
RATES = {"dropout": 0.4, "recurrent_dropout": 0.3}


def layer_and_call(cell: str, *, masked: bool, dropped: bool) -> tuple[RnnLayer, RnnCall]:
    rates: Any = RATES if dropped else {}
    module: Any = bidirectional(both(cell, UNITS, FEATURES, "mul", **rates)).double().train()
    layer = module.rnn_layer()
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(BATCH, TIME, FEATURES, generator=rng, dtype=torch.float64)
    initial = tuple(
        tuple(
            torch.randn(BATCH, UNITS, generator=rng, dtype=torch.float64)
            for _ in range(layer.state_count())
        )
        for _ in range(2)
    )
    lengths = torch.tensor([5, 3]) if masked else None
    torch.manual_seed(1)
    return layer, draw_masks(layer, RnnCall(x, lengths, initial, "mul"))


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernel's two functions in float64, by the loop; return which of them were called."""
    seen: list[str] = []

    def run(layer: RnnLayer, call: RnnCall) -> tuple[Tensor, Tensor]:
        outputs, states = loop.run_directions(layer, call)
        return torch.cat(outputs, dim=2), torch.stack([s for state in states for s in state])

    def run_keeping(layer: RnnLayer, call: RnnCall) -> Any:
        seen.append("run")
        kept = torch.zeros(1)  # of each direction; the gradient below runs the loop instead
        return *run(layer, call), (kept,) * layer.count_directions()

    def gradient(
        layer: RnnLayer, call: RnnCall, kept: Any, d_out: Any, d_final: Any, *, of_x: bool
    ) -> Any:
        seen.append("gradient")
        numbers = [t.detach().requires_grad_() for t in float_tensors(layer, call)]
        with torch.enable_grad():
            out = run(*with_float_tensors(layer, call, numbers))
            pairs = [(y, d) for y, d in zip(out, (d_out, d_final), strict=True) if d is not None]
            outputs = [y for y, _ in pairs] or [torch.zeros(1, requires_grad=True).sum()]
            given = [d for _, d in pairs] or [torch.zeros(())]
            found = torch.autograd.grad(outputs, numbers, given, materialize_grads=True)
        count = len(call.states())
        rest = iter(found[1 + count :])
        weights = [None if p is None else next(rest) for p in layer.parameters]
        return found[0] if of_x else None, list(found[1 : 1 + count]), weights

    monkeypatch.setattr(native_engine, "run_keeping", run_keeping)
    monkeypatch.setattr(native_engine, "gradient", gradient)
    return seen


@pytest.mark.parametrize(
    ("cell", "masked", "dropped"),
    rest_thorough(
        [
            ("LSTM", True, True),
            ("LSTM", False, False),
            ("GRU", True, False),
            ("GRU before", False, True),
            ("SimpleRNN", True, True),
        ],
        [("LSTM", True, True), ("GRU before", False, True)],
    ),
)
def test_gradients_are_exact(cell: str, masked: bool, dropped: bool, in_float64: list[str]) -> None:
    """gradcheck of what stands around the kernel, for all its tensors."""
    layer, call = layer_and_call(cell, masked=masked, dropped=dropped)

    def compute(*numbers: Tensor) -> tuple[Tensor, ...]:
        found = native_engine.run_with_gradient(*with_float_tensors(layer, call, numbers))
        return *found[0], *(s for state in found[1] for s in state)

    numbers = [t.detach().clone().requires_grad_() for t in float_tensors(layer, call)]
    assert torch.autograd.gradcheck(compute, numbers, fast_mode=True)
    assert {"run", "gradient"} == set(in_float64)


REFUSED = (
    r"gradients have no gradients, and come one at a time; use k2t.set_engine\(model, \"torch\"\)"
)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_the_kernels_gradients_are_refused_and_torch_has_them(training: bool) -> None:
    module: Any = bidirectional(both("GRU before", 19, 5, "mul")).train(training)
    x = torch.randn(3, 7, 5, requires_grad=True)
    numbers = module(x).sin().sum()
    with pytest.raises(k2t.UsageError, match=REFUSED):
        torch.autograd.grad(numbers, x, create_graph=True, retain_graph=True)
    many = torch.ones(2)
    with pytest.raises(k2t.UsageError, match=REFUSED):
        torch.autograd.grad(numbers, x, many, is_grads_batched=True, retain_graph=True)
    (once,) = torch.autograd.grad(numbers, x)
    k2t.set_engine(module, "torch")
    (again,) = torch.autograd.grad(module(x).sin().sum(), x, create_graph=True)
    assert_close([once], [again.detach()], 1e-5)
    assert again.requires_grad


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_every_order_by_torch_are_those_of_the_loop(cell: str) -> None:
    """Each in a graph, with states that depend on the input, as each gradient does."""
    found: dict[str, list[Tensor]] = {}
    for engine, dtype in (("torch", torch.float32), ("loop", torch.float64)):
        module: Any = bidirectional(both(cell, 19, 5, "mul")).to(dtype).train()
        module.engine = engine
        rng = torch.Generator().manual_seed(2)
        x = torch.randn(3, 7, 5, generator=rng).to(dtype).requires_grad_()
        makers = torch.randn(4 if cell == "LSTM" else 2, 5, 19, generator=rng).to(dtype)
        numbers = module(x, None, [x.mean(dim=1) @ maker for maker in makers]).sin().sum()
        gradients = []
        for _ in range(3):
            (gradient,) = torch.autograd.grad(numbers, x, create_graph=True)
            gradients.append(gradient.detach())
            numbers = gradient.square().sum()
        found[engine] = gradients
    for got, wanted in zip(found["torch"], found["loop"], strict=True):
        scale = float(wanted.abs().max())
        assert scale > 1e-3
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-5 * scale)
