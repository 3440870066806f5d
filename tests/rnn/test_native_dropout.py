"""Dropout inside a layer, by the native kernel: the loop's masks, the loop's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from kernel_layers import (
    CELLS,
    TOLERANCE,
    TORCH_GATES,
    WHY_MISSING,
    assert_close,
    both,
    gru,
    half,
    native,
    reference,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.layers.recurrent import bidirectional, recurrent
from keras2torch_birnn.rnn.engine_settings import explain
from keras2torch_birnn.schema.merge_modes import MERGE_MODES

pytestmark = pytest.mark.usefixtures("native_where_it_pays")
RATES = ((0.4, 0.0), (0.0, 0.3), (0.4, 0.3))
UNITS, FEATURES, BATCH, TIME = 19, 5, 7, 11


def layer(cell: str, merge: str | None = "mul", **config: Any) -> nn.Module:
    if merge in ("one", "back"):
        return recurrent(half(cell, UNITS, FEATURES, 1, go_backwards=merge == "back", **config))
    return bidirectional(both(cell, UNITS, FEATURES, merge, **config))


def numbers(module: Any, engine: str, dtype: torch.dtype, *, masked: bool) -> list[Tensor]:
    """Outputs, gradients of all that may have one, and the random numbers that come next."""
    module = module.to(dtype).train().requires_grad_(True)
    module.engine = engine
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(BATCH, TIME, FEATURES, generator=rng).to(dtype).requires_grad_()
    mask = torch.rand(BATCH, TIME, generator=rng) < 0.6 if masked else None
    states = len(module.plan.rules) * (2 if module.cell.kind == "LSTM" else 1)
    start = [torch.randn(BATCH, UNITS, generator=rng).to(dtype) for _ in range(states)]
    start = [s.requires_grad_() for s in start]
    torch.manual_seed(11)
    found = module(x, mask, start)
    outputs = list(found) if isinstance(found, tuple) else [found]
    loss = torch.stack([y.sin().sum() for y in outputs]).sum()
    wanted = [x, *start, *module.parameters()]
    return [*outputs, *torch.autograd.grad(loss, wanted), torch.rand(3)]


@native
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("implementation", [1, 2])
@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("cell", CELLS)
def test_the_same_seed_gives_what_the_loop_gives(
    cell: str, rates: tuple[float, float], implementation: int, masked: bool
) -> None:
    names = ("dropout", "recurrent_dropout")
    options = {"implementation": implementation, **dict(zip(names, rates, strict=True))}
    wanted = numbers(layer(cell, **options), "loop", torch.float64, masked=masked)
    assert_close(numbers(layer(cell, **options), "native", torch.float32, masked=masked), wanted)


@native
@pytest.mark.parametrize(("number", "merge"), [*enumerate((*MERGE_MODES, None, "one", "back"))])
def test_every_merge_and_direction_gives_what_the_loop_gives(
    number: int, merge: str | None
) -> None:
    rules = ("zeros", "previous_output", "previous_state")
    for row, cell in enumerate(CELLS, number):
        module = layer(
            cell,
            merge,
            dropout=0.4,
            recurrent_dropout=0.3,
            implementation=1 + row % 2,
            return_state=True,
            masked_output=rules[row % 3],
        )
        wanted = numbers(module, "loop", torch.float64, masked=True)
        assert_close(numbers(module, "native", torch.float32, masked=True), wanted)


def engines() -> Iterator[tuple[str, torch.dtype, float]]:
    """Engines, and how exact each is."""
    yield "loop", torch.float64, 1e-12
    if not WHY_MISSING:
        yield "native", torch.float32, TOLERANCE


@pytest.mark.parametrize("implementation", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_masks_are_drawn_for_each_direction_first_of_inputs_then_of_states(
    cell: str, implementation: int
) -> None:
    """Which random numbers a mask gets is part of what a seed means: it must not change.

    For a row alone, dropping is scaling rows of the kernels. Each row has masks of its own.
    """
    rates: dict[str, Any] = {"dropout": 0.4, "recurrent_dropout": 0.3}
    spec = both(cell, UNITS, FEATURES, "concat", implementation=implementation, **rates)
    x = torch.randn(2, TIME, FEATURES, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    rows = [deepcopy(spec), deepcopy(spec)]
    for part in ("forward_layer", "backward_layer"):
        order = TORCH_GATES[spec.parts[part].class_name]
        copies = len(order) if implementation == 1 else 1
        for name, size, rate in (("kernel", FEATURES, 0.4), ("recurrent_kernel", UNITS, 0.3)):
            ones = torch.ones(2, size, dtype=torch.float64)
            drawn = [nn.functional.dropout(ones, rate) for _ in range(copies)]
            for row, one in enumerate(rows):
                blocks = np.split(one.parts[part].weights[name], len(order), axis=1)
                for position, gate in enumerate(order):
                    blocks[gate] = blocks[gate] * drawn[position % copies][row].numpy()[:, None]
                one.parts[part].weights[name] = np.concatenate(blocks, axis=1)
    for engine, dtype, tolerance in engines():
        module: Any = bidirectional(spec).to(dtype).train()
        module.engine = engine
        torch.manual_seed(3)
        with torch.no_grad():
            got = module(x.to(dtype))
        for row, one in enumerate(rows):
            wanted = reference(one, x[row : row + 1].double().numpy(), None)
            assert_close(got[row : row + 1], wanted, tolerance)


@native
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_that_would_be_split_between_threads_drops_too(cell: str) -> None:
    module: Any = bidirectional(both(cell, 389, 3, "sum", recurrent_dropout=0.3)).train()
    x, found = torch.randn(1, 5, 3), {}
    for engine, threads in (("native", 4), ("loop", 1)):
        torch.set_num_threads(threads)
        module.engine = engine
        torch.manual_seed(1)
        with torch.no_grad():
            found[engine] = module(x)
    torch.testing.assert_close(found["native"], found["loop"], rtol=1e-5, atol=1e-6)


@native
def test_dropout_runs_by_the_kernel_inside_a_checkpoint_too() -> None:
    module, x = gru(dropout=0.4, recurrent_dropout=0.3)
    assert [choice.engine for choice in explain(module.train())[""]] == ["native"]
    weights = list(module.parameters())
    torch.manual_seed(2)
    wanted = torch.autograd.grad(module(x).sum(), weights)
    torch.manual_seed(2)
    inside: Any = checkpoint(module, x, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(inside.sum(), weights), wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rates", [(0.4, 0.3), (0.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("cell", CELLS)
def test_evaluation_and_rates_of_zero_and_one_drop_nothing_and_draw_nothing(
    cell: str, rates: tuple[float, float]
) -> None:
    """Keras drops for 0 < rate < 1 only."""
    spec = both(cell, UNITS, FEATURES, "mul", dropout=rates[0], recurrent_dropout=rates[1])
    x = torch.randn(BATCH, TIME, FEATURES)
    for mask in (None, torch.rand(BATCH, TIME) < 0.6):
        wanted = reference(spec, x.double().numpy(), None if mask is None else mask.numpy())
        for engine, dtype, tolerance in engines():
            module: Any = bidirectional(spec).to(dtype).train(rates != (0.4, 0.3))
            module.engine = engine
            random = torch.random.get_rng_state()
            with torch.no_grad():
                assert_close(module(x.to(dtype), mask), wanted, tolerance)
            assert torch.equal(random, torch.random.get_rng_state())


@native
@pytest.mark.thorough
def test_compiled_graphs_drop_by_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = gru(dropout=0.4, recurrent_dropout=0.3)
    module.train()
    compiled = torch.compile(module, backend="eager")
    found = []
    for call in (compiled, module):
        torch.manual_seed(2)
        with torch.no_grad():
            found.append(call(x))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    torch.compiler.reset()
    module.engine = "native"
    with torch.no_grad(), pytest.raises(Exception, match="compiled graphs has no dropout") as said:
        torch.compile(module, backend="eager")(x)
    assert isinstance(said.value, UsageError) or "UsageError" in str(said.value)
