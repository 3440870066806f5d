"""The door to the engines: which one runs a call, what forces one, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import (
    both,
    calls_of_native,
    gru,
    half,
    native,
)
from warm_process import run_code

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.layers.recurrent import bidirectional, recurrent
from keras2torch_birnn.rnn import engines
from keras2torch_birnn.rnn.engines import (
    DESCRIPTIONS,
    REQUESTS,
    EngineName,
    native_pays,
    static_engine,
)
from keras2torch_birnn.rnn.native import library, op
from keras2torch_birnn.rnn.native.library import NoKernelError

pytestmark = pytest.mark.usefixtures("native_where_it_pays")


@native
def test_native_runs_float32_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls_of_native(monkeypatch)
    module, x = gru()
    module.double()(x.double())
    assert seen == []
    module.float()
    with torch.inference_mode():
        module(x)
    module.requires_grad_(False)(x)
    module.requires_grad_(True).eval()(x)
    assert seen == [3, 3, 3]


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), max_size=4),
    turned=st.booleans(),
    by_torch=st.booleans(),
)
def test_padded_rows_are_told_from_others(
    rows: list[list[bool]], turned: bool, by_torch: bool
) -> None:
    mask = torch.tensor(rows, dtype=torch.bool).view(-1, 5)
    if turned:  # a view whose steps do not lie side by side
        mask = mask.T.contiguous().T
    with pytest.MonkeyPatch.context() as patched:
        if by_torch:
            patched.setattr(op, "why_missing", lambda: "it was not built")
        found = op.lengths_of_padded(mask)
    if all(row == sorted(row, reverse=True) for row in rows):
        assert found is not None
        assert found.tolist() == [sum(row) for row in rows]
    else:
        assert found is None


@native
def test_a_transform_of_functions_runs_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls_of_native(monkeypatch)
    module: Any = bidirectional(both("GRU before", 6, 5, "sum"))
    x = torch.randn(3, 11, 5)
    with torch.no_grad():
        wanted = module(x)
        assert seen == [3]
        got = torch.func.vmap(module)(x[:, None])[:, 0]
    assert seen == [3]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)


def test_an_input_of_another_width_is_refused() -> None:
    module, x = gru()
    with pytest.raises(ValueError, match=r"an input \(batch, time, 5\) is expected, found"):
        module(x[..., :-1])


@native
def test_several_rows_of_a_wide_lstm_run_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls_of_native(monkeypatch)
    monkeypatch.setattr(engines, "MANY_WEIGHTS", 4 * 64 - 1)
    for cell in ("LSTM", "GRU"):
        module: Any = bidirectional(both(cell, 8, 5, "mul"))
        with torch.no_grad():
            module(torch.randn(3, 3, 5))
            module(torch.randn(4, 3, 5))
            module(torch.randn(4, 3, 5), torch.ones(4, 3))
    assert seen == [3, 4, 3, 4, 4]
    monkeypatch.undo()
    assert native_pays("LSTM", 4, 4 * 512**2)
    assert not native_pays("LSTM", 4, 4 * 513**2)
    assert native_pays("LSTM", 3, 4 * 513**2)
    assert native_pays("GRU", 4, 4 * 513**2)


@pytest.mark.parametrize(
    "engine",
    DESCRIPTIONS,
)
def test_every_forced_engine_gives_the_same_numbers(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "native" and library.why_missing():
        pytest.skip(library.why_missing())
    module, x = gru()
    with torch.no_grad():
        wanted = module(x)
        monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", engine)
        np.testing.assert_allclose(module(x), wanted, rtol=0, atol=2e-6)


def test_every_engine_is_described_and_may_be_asked_for() -> None:
    assert tuple(DESCRIPTIONS) == get_args(EngineName)
    assert sorted(REQUESTS) == sorted(("auto", "torch", *DESCRIPTIONS))


def test_the_environment_is_read_once() -> None:
    script = (
        "import os, keras2torch_birnn as k2t\n"
        "rnn = k2t.BiLSTM(3, 5)\n"
        "os.environ['K2T_ENGINE'] = 'fused'\n"
        "print(rnn.explain()[0].engine, k2t.BiLSTM(3, 5).explain()[0].engine)"
    )
    assert run_code(script, K2T_ENGINE="loop").out.split() == ["loop", "loop"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.thorough
def test_a_masked_stack_compiles_without_the_kernel() -> None:
    rnn: Any = k2t.BiLSTM(5, 7, 2, merge_mode="sum", batch_first=True, engine="torch").eval()
    x, h, c = torch.randn(3, 6, 5), torch.randn(4, 3, 7), torch.randn(4, 3, 7)

    def run(x: torch.Tensor, mask: torch.Tensor) -> Any:
        out, states = rnn(x, (h, c), mask=mask)
        return out, *states

    compiled: Any = torch.compile(run, backend="eager", fullgraph=True)
    for lengths in ([6, 2, 0], [1, 5, 6]):
        mask = torch.arange(6) < torch.tensor(lengths)[:, None]
        with torch.no_grad():
            for got, wanted in zip(compiled(x, mask), run(x, mask), strict=True):
                np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)


def test_an_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "warp")
    with pytest.raises(
        UsageError,
        match=r"K2T_ENGINE=warp: one of auto, torch, fused, loop, native",
    ):
        gru()


def test_what_torch_lacks_cannot_be_forced_to_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = half("GRU before", 4, 3, 0)
    module: Any = recurrent(spec)
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "fused")
    with pytest.raises(UsageError, match=r"K2T_ENGINE=fused: nn.GRU resets after the product"):
        static_engine(spec)
    with pytest.raises(UsageError, match=r"K2T_ENGINE=fused: torch has no kernel"):
        module(torch.zeros(1, 2, 3))


@native
def test_what_the_kernel_lacks_cannot_be_forced_to_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "native")
    spec = half("LSTM", 4, 3, 0, activation="softmax")
    with pytest.raises(UsageError, match="native kernel lacks an activation"):
        static_engine(spec)
    module, x = gru()
    with pytest.raises(UsageError, match="float32 on CPU, from plain tensors"):
        module.double()(x.double())


def test_without_the_library_torch_runs_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_absence", lambda: NoKernelError("it was not built", "build it"))
    library.warn_once_if_missing.cache_clear()
    with pytest.warns(RuntimeWarning, match="without the native kernel") as said:
        module, x = gru()
        gru()
    assert len(said) == 1
    assert k2t.explain(module)[""][0].engine == "fused"
    assert module(x).shape == (3, 11, 24)
    assert static_engine(half("GRU", 4, 3, 0)).engine == "fused"
    library.warn_once_if_missing.cache_clear()


@native
def test_the_choice_says_why() -> None:
    def chosen(cell: str, **config: Any) -> tuple[str, str]:
        found = static_engine(half(cell, 4, 3, 0, **config))
        return found.engine, found.reason

    assert chosen("GRU")[0] == "native"
    assert "rows" not in chosen("LSTM")[1]
    small = half("LSTM", 4, 3, 0)
    wide = static_engine(replace(small, config={**small.config, "units": 513}))
    assert wide.reason.endswith("also for 4 rows and more without mask")
    assert "loop" in chosen("GRU before")[1]
    odd = {"name": "relu", "negative_slope": 0.1, "max_value": None}
    assert chosen("LSTM", activation=odd)[0] == "loop"
