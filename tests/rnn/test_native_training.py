"""Gradients through the native kernel, and training by it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_fixtures import isa_bits, run_by
from kernel_layers import CELLS, both, cases, gradients_by_native, gru, layer_of, native
from sampling import examples
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from keras2torch_birnn.layers.recurrent import bidirectional
from keras2torch_birnn.rnn.native import packing

pytestmark = [native, pytest.mark.usefixtures("native_where_it_pays")]


@pytest.mark.usefixtures("forced_native")
@settings(max_examples=examples(90), deadline=None)
@given(case=cases(), training=st.booleans())
def test_gradients_are_those_of_the_loop_in_float64(case: dict[str, Any], training: bool) -> None:
    """Compare gradients of random sums of all outputs and final states, for all tensors.

    By every instruction set: the loop, which is slow, runs once for all of them.
    """
    cell, merge, units, features = (case[k] for k in ("cell", "merge", "units", "features"))
    make, spec = layer_of(case)
    rng = torch.Generator().manual_seed(case["seed"])
    batch, time = case["batch"], case["time"]
    x = torch.randn(batch, time, features, generator=rng)
    mask = torch.rand(batch, time, generator=rng) < 0.6 if case["masked"] else None
    count = (2 if cell == "LSTM" else 1) * (1 if merge in ("one", "back") else 2)
    start = [torch.randn(batch, units, generator=rng) for _ in range(count if case["state"] else 0)]

    def gradients(dtype: torch.dtype, engine: str, factor: float = 1.0) -> list[Tensor]:
        module: Any = make(spec).to(dtype).train(training)
        module.engine = engine
        inputs = [(t.to(dtype) * factor).requires_grad_() for t in (x, *start)]
        module.requires_grad_(True)  # torch's second bias, too
        with torch.no_grad():
            for weight in module.parameters():
                weight.mul_(factor)
        torch.manual_seed(case["seed"])  # of the masks of dropout
        found = module(inputs[0], mask, inputs[1:] or None)
        outputs = found if isinstance(found, tuple) else (found,)
        weigh = torch.Generator().manual_seed(1)
        loss = sum((y * torch.randn(y.shape, generator=weigh).to(dtype)).sum() for y in outputs)
        return list(
            torch.autograd.grad(loss, [*inputs, *module.parameters()], materialize_grads=True)
        )

    torch.set_num_threads(1)
    wanted = gradients(torch.float64, "loop")

    def worst(found: list[Tensor]) -> float:
        return max(
            float((a.double() - b).abs().max()) / max(1.0, float(b.abs().max()))
            for a, b in zip(found, wanted, strict=True)
        )

    # At a bend of relu or of a hard_sigmoid rounding decides between two gradients. The weights are
    # moved, too: a sum that is a bias for the most part would hardly move with the inputs.
    nearby = (gradients(torch.float64, "loop", 1 + step) for step in (-1e-5, 1e-5))
    assume(all(worst(found) < 1e-2 for found in nearby))
    torch.set_num_threads(case["threads"])
    for bit in isa_bits():
        with run_by(bit):
            assert worst(gradients(torch.float32, "native")) <= 1e-5, bit


@pytest.mark.usefixtures("isa", "forced_native")
@pytest.mark.parametrize("cell", CELLS)
def test_sums_of_several_tasks_are_added_up(cell: str) -> None:
    """More rows than a task takes; then no step at all."""
    spec = both(cell, 16, 32, "sum")
    rng = torch.Generator().manual_seed(0)
    x, factors = (torch.randn(70, 5, size, generator=rng) for size in (32, 16))
    mask = torch.arange(5) < torch.arange(70)[:, None] % 6

    def gradients(dtype: torch.dtype, engine: str, mask: Tensor) -> list[Tensor]:
        module: Any = bidirectional(spec).to(dtype).train()
        module.engine = engine
        inputs = [x.to(dtype).requires_grad_(), *module.requires_grad_(True).parameters()]
        return list(torch.autograd.grad((module(inputs[0], mask) * factors).sum(), inputs))

    wanted = gradients(torch.float64, "loop", mask)
    for a, b in zip(gradients(torch.float32, "native", mask), wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-6 * float(b.abs().max()))
    no_step = torch.zeros_like(mask)
    assert all(not d.any() for d in gradients(torch.float32, "native", no_step))


def test_training_runs_by_the_kernel_and_learns_what_the_loop_learns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = gradients_by_native(monkeypatch)

    def trained(engine: str) -> list[Tensor]:
        module, x = gru()
        module.train().engine = engine
        optimizer = torch.optim.SGD(module.parameters(), 0.3)
        mask = torch.tensor([5, 11, 0])[:, None] > torch.arange(11)
        for _ in range(20):
            optimizer.zero_grad()
            (module(x, mask) - x.mean()).square().mean().backward()
            optimizer.step()
        return [p.detach() for p in module.parameters()]

    start = [p.detach() for p in gru()[0].parameters()]
    by_kernel, by_loop = trained("auto"), trained("loop")
    assert seen == [3] * 20
    for a, b, before in zip(by_kernel, by_loop, start, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert (a - before).abs().max() > 1e-3


def test_training_in_a_checkpoint_twice_and_on_nothing_gives_the_same_gradients() -> None:
    module, x = gru()
    module.train()
    weights = list(module.parameters())
    loss = module(x).sum()
    wanted = torch.autograd.grad(loss, weights, retain_graph=True)
    again = torch.autograd.grad(loss, weights)
    inside = checkpoint(module, x, use_reentrant=False).sum()
    for a, b, c in zip(wanted, again, torch.autograd.grad(inside, weights), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    nothing = torch.zeros(3, 11, dtype=torch.bool)
    for empty in (module(x[:0]), module(x, nothing)):
        assert not any(g.any() for g in torch.autograd.grad(empty.sum(), weights))


def test_torchs_default_dtype_and_device_change_nothing() -> None:
    module, x = gru()
    mask = torch.arange(11) < torch.tensor([11, 4, 0])[:, None]

    def computed() -> list[Tensor]:
        loss = module.train()(x, mask).square().sum()
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            return [module.eval()(x, mask), module(x), *gradients]

    wanted = computed()
    torch.set_default_dtype(torch.float64)
    try:
        packing._cache.clear()  # so that weights are packed anew
        with torch.device("meta"):
            got = computed()
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)


def test_several_threads_train_at_once() -> None:
    module, _ = gru()
    weights = list(module.train().parameters())
    inputs = [torch.randn(b, 9, 5) for b in range(1, 9)]

    def gradients(x: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(module(x).square().sum(), weights)

    wanted = [gradients(x) for x in inputs]
    with ThreadPoolExecutor(4) as threads:
        for got, exact in zip(threads.map(gradients, inputs), wanted, strict=True):
            for a, b in zip(got, exact, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own() -> None:
    module, x = gru()
    module.train()
    wanted = torch.autograd.grad(module(x).sum(), list(module.parameters()))
    module.weight_hh_l0.requires_grad_(False)
    module(x).sum().backward()
    for (name, p), gradient_of in zip(module.named_parameters(), wanted, strict=True):
        if name == "weight_hh_l0":
            assert p.grad is None
        else:
            assert p.grad is not None and torch.equal(p.grad, gradient_of)


def test_weights_changed_between_forward_and_backward_are_refused() -> None:
    module, x = gru()
    loss = module.train()(x).sum()
    with torch.no_grad():
        module.weight_hh_l0.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


FALLING: Any = (
    ("silu", "sigmoid"),
    ("hard_silu", "hard_sigmoid_0.2"),
    ("tanh", "silu"),
    ({"name": "leaky_relu", "negative_slope": -0.3}, "sigmoid"),
    ({"name": "elu", "alpha": -0.5}, "sigmoid"),
)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("activation", "gate"), FALLING)
@pytest.mark.parametrize("cell", CELLS)
def test_activations_that_fall_have_gradients_by_the_loop(
    cell: str, activation: Any, gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their derivative cannot be told from their value, which the kernel keeps."""
    seen = gradients_by_native(monkeypatch)
    spec = both(cell, 19, 5, "mul", activation=activation, recurrent_activation=gate)
    rng = torch.Generator().manual_seed(3)
    given = torch.randn(3, 4, 5, generator=rng)

    def gradients(dtype: torch.dtype, engine: str) -> list[Tensor]:
        module: Any = bidirectional(spec).to(dtype).train()
        module.engine = engine
        x = given.to(dtype).requires_grad_()
        mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]]).bool()
        return list(torch.autograd.grad(module(x, mask).sum(), [x, *module.parameters()]))

    wanted = gradients(torch.float64, "loop")
    for a, b in zip(gradients(torch.float32, "native"), wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    rises = cell == "SimpleRNN" and activation == "tanh"  # which has no gate
    assert seen == ([3] if rises else [])
