"""Keras' activations in torch, all of them: their gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from keras2torch_birnn.rnn.activations import FUNCTIONS, Activation, hard_sigmoid_1_6

WITH_OPTIONS = {
    "relu with options": partial(
        FUNCTIONS["relu"], negative_slope=0.3, max_value=1.7, threshold=0.2
    ),
    "gelu by tanh": partial(FUNCTIONS["gelu"], approximate=True),
}
every_function = pytest.mark.parametrize("name", [*FUNCTIONS, *WITH_OPTIONS])


def function_of(name: str) -> Activation:
    return {**FUNCTIONS, **WITH_OPTIONS}[name]


def second_gradient(function: Activation, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return second


@every_function
def test_first_and_second_gradients_are_those_of_the_numbers(name: str) -> None:
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    x.requires_grad_()
    assert torch.autograd.gradcheck(function_of(name), (x,))
    assert torch.autograd.gradgradcheck(function_of(name), (x,))


@every_function
def test_second_gradients_of_float32_are_those_of_float64(name: str) -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)) * 2
    found, exact = (second_gradient(function_of(name), one) for one in (x, x.double()))
    scale = max(1.0, float(exact.abs().max()))
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5 * scale)


def test_hard_sigmoid_gives_the_bits_of_torchs_function() -> None:
    x = torch.cat((torch.linspace(-8, 8, 100_003), torch.tensor([3.0, -3.0, 1e38, -1e38])))
    x = torch.cat((x, torch.tensor([float("inf"), -float("inf"), -0.0])))
    assert torch.equal(hard_sigmoid_1_6(x), torch.nn.functional.hardsigmoid(x))
    assert hard_sigmoid_1_6(torch.tensor(float("nan"))).isnan()
