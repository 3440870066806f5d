"""Gradients of gradients are torch's, and refused by the kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_layers import CELLS, assert_close, both, native
from torch import Tensor

import keras2torch_birnn as k2t
from keras2torch_birnn.layers.recurrent import bidirectional

pytestmark = [native, pytest.mark.usefixtures("native_where_it_pays")]

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
