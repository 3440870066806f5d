"""The recurrent modules of torch: every option against the reference in float64, and training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent_parity import EXACT, assert_same, by_reference, by_torch, masks, ruled
from sampling import examples
from specs import (
    CELLS,
    H_BACK,
    KERAS3,
    MERGE_MODES,
    RULES,
    B,
    F,
    H,
    T,
    bi,
    chain,
    recurrent_call,
    rnn,
    values,
)
from torch import Tensor, nn

from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.reference import compute
from keras2torch_birnn.rnn import modules
from keras2torch_birnn.rnn.engines import static_engine
from keras2torch_birnn.spec import Array, LayerSpec, ModelSpec

# Without jumps: a jump would turn rounding into a difference. Exponentials explode in a loop.
SMOOTH = (
    "tanh relu sigmoid linear softsign elu selu gelu silu mish leaky_relu softmax softplus "
    "hard_sigmoid_0.2 hard_sigmoid_1/6 hard_silu"
).split()
GATES = ("sigmoid", "hard_sigmoid_0.2", "hard_sigmoid_1/6", "tanh", "softsign")
FUSED_CLASSES = {"LSTM": nn.LSTM, "GRU": nn.GRU, "SimpleRNN": nn.RNN}
STATES = {"LSTM": 2, "GRU": 1, "SimpleRNN": 1}


# ---- every option ------------------------------------------------------------------------------


@st.composite
def cells(draw: st.DrawFn, units: int, seed: int, **options: Any) -> LayerSpec:
    """A recurrent layer of any cell and activations."""
    cell = draw(st.sampled_from(CELLS))
    activations: dict[str, Any] = {}
    if draw(st.booleans()):  # else the defaults, which have a fused kernel
        activations["activation"] = draw(st.sampled_from(SMOOTH))
        if cell != "SimpleRNN":
            activations["recurrent_activation"] = draw(st.sampled_from(GATES))
    return rnn(cell, units, seed=seed, use_bias=draw(st.booleans()), **activations, **options)


@st.composite
def any_layer(draw: st.DrawFn) -> LayerSpec:
    """A recurrent layer or a Bidirectional, of halves alike or not, with any options."""
    options = {
        "return_sequences": draw(st.booleans()),
        "return_state": draw(st.booleans()),
        "go_backwards": draw(st.booleans()),
        "masked_output": draw(st.sampled_from(RULES)),
    }
    seed = draw(st.integers(0, 2**31))
    forward = draw(cells(H, seed, **options))
    kind = draw(st.sampled_from(("plain", "alike", "asymmetric")))
    if kind == "plain":
        return ruled(forward)
    merge_mode = draw(st.sampled_from(MERGE_MODES))
    if kind == "alike":
        cell = "GRU before" if forward.config.get("reset_after") is False else forward.class_name
        twin = rnn(cell, H, seed=seed + 1, use_bias=forward.config["use_bias"])
        backward = replace(twin, config=dict(forward.config), semantics=forward.semantics)
    else:
        units = H_BACK if merge_mode in ("concat", None) else H
        backward = draw(cells(units, seed + 1, **options))
    return ruled(bi(forward, backward, merge_mode))


def states_of(spec: LayerSpec, batch: int) -> tuple[Array, ...]:
    """Random first states in Keras' order, none where Keras cannot split them into halves."""
    halves = tuple(spec.parts.values()) or (spec,)
    counts = [STATES[half.class_name] for half in halves]
    if len(set(counts)) > 1:
        return ()
    units = [half.config["units"] for half in halves for _ in range(counts[0])]
    return tuple(values(batch, size, seed=50 + i) for i, size in enumerate(units))


@settings(max_examples=examples(300), deadline=None)
@given(st.data())
def test_every_option_gives_what_the_reference_gives(data: st.DataObject) -> None:
    spec = data.draw(any_layer())
    batch, steps = data.draw(st.sampled_from(((B, T), (1, T), (B, 1), (1, 1))))
    mask = data.draw(masks(batch, steps))
    state = states_of(spec, batch) if data.draw(st.booleans()) else ()
    x = values(batch, steps, F)
    got = by_torch(convert_layer(spec), x, mask, state)
    assert_same(got, by_reference(spec, x, mask, state))


# ---- torch's own modules -----------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN", "SimpleRNN relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_an_ordinary_layer_is_torchs_own_module(cell: str, bias: bool) -> None:
    cell, _, activation = cell.partition(" ")
    options = {"use_bias": bias, "return_sequences": True, "activation": activation or "tanh"}
    spec, x = rnn(cell, **options), values(B, T, F)
    named = {"nonlinearity": activation} if activation else {}
    for layer, directions in ((spec, 1), (bi(spec, rnn(cell, seed=1, **options)), 2)):
        module = convert_layer(layer)
        made: Any = FUSED_CLASSES[cell]
        twin = made(F, H, bias=bias, batch_first=True, bidirectional=directions == 2, **named)
        assert isinstance(module, FUSED_CLASSES[cell])
        for attribute in ("mode", "bidirectional", "batch_first"):
            assert getattr(module, attribute) == getattr(twin, attribute)
        assert list(module.state_dict()) == list(twin.state_dict())
        # the weights are worth the same in torch's own, unchanged module
        twin.double().load_state_dict(module.state_dict())
        assert_same((twin(torch.from_numpy(x))[0],), by_torch(module, x))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (rnn("LSTM", activation="relu"), "nn.LSTM has no activation relu"),
        (rnn("GRU", recurrent_activation="hard_sigmoid_0.2"), "no recurrent_activation hard_sig"),
        (rnn("GRU before"), "reset_after"),
        (rnn("SimpleRNN", activation="elu"), "nn.RNN has no activation elu"),
    ],
    ids=lambda value: value.name if isinstance(value, LayerSpec) else "",
)
def test_what_torch_cannot_compute_runs_in_the_loop_and_says_why(
    spec: LayerSpec, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "torch")
    assert static_engine(spec).engine == "loop"
    assert reason in static_engine(spec).reason
    module = convert_layer(spec)
    assert isinstance(module, modules.LoopRNN)
    assert {"weight_ih_l0", "weight_hh_l0"} <= set(module.state_dict())


@pytest.mark.parametrize(
    "other",
    [
        rnn("LSTM", H_BACK, seed=1),
        rnn("GRU", H, seed=1),
        rnn("LSTM", H, seed=1, activation="relu"),
        rnn("LSTM", H, seed=1, use_bias=False),
    ],
    ids=["units", "class", "activation", "bias"],
)
def test_halves_that_differ_are_two_modules(other: LayerSpec) -> None:
    module = convert_layer(bi(rnn("LSTM"), other))
    assert isinstance(module, modules.BidirectionalPair)
    assert isinstance(module.forward_layer, nn.LSTM)
    assert "backward_layer.weight_hh_l0" in module.state_dict()


# ---- gradients ---------------------------------------------------------------------------------


def gradients(module: nn.Module, x: Array, mask: Array) -> dict[str, Tensor]:
    given = torch.from_numpy(x).requires_grad_()
    out = torch.cat([y.flatten() for y in flat(module(given, mask=torch.from_numpy(mask)))])
    (out * torch.linspace(-1, 1, len(out), dtype=out.dtype)).sum().backward()
    found = {name: p.grad for name, p in module.named_parameters()}
    return {name: grad for name, grad in {**found, "x": given.grad}.items() if grad is not None}


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN"])
@pytest.mark.parametrize("rule", ["zeros", "previous_output"])
def test_gradients_of_the_masked_fused_module_are_those_of_the_loop(
    cell: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"return_sequences": True, "return_state": True, "masked_output": rule}
    spec = bi(rnn(cell, **options), rnn(cell, seed=1, **options))
    x = values(4, T, F)
    mask = np.array([[1] * 7, [1, 1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0, 1], [0] * 7], dtype=bool)
    fused = gradients(convert_layer(spec).train(), x, mask)
    monkeypatch.setattr("keras2torch_birnn.rnn.layer.KERNELS", {})
    loop = gradients(convert_layer(spec).train(), x, mask)
    assert "weight_hh_l0_reverse" in fused
    assert set(loop) <= set(fused)  # a loop has no second bias that Keras does not have
    for name, wanted in loop.items():
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(fused[name], wanted, atol=EXACT, rtol=1e-10)
    assert not fused["x"][~torch.from_numpy(mask)].any()


def test_gradients_are_right() -> None:
    """Against finite differences: masked, stateless, by the loop and by the kernel."""
    mask = torch.tensor([[True, True, False, True], [False, False, True, False]])
    for spec in (bi(rnn("LSTM"), rnn("LSTM", seed=1)), rnn("GRU before", go_backwards=True)):
        module = convert_layer(spec)
        x = torch.from_numpy(values(2, 4, F)).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, m=module: m(x, mask=mask), (x,))


# ---- stateful ----------------------------------------------------------------------------------


def test_a_stateful_pair_carries_the_states_of_both_halves() -> None:
    options = {"stateful": True, "return_sequences": True}
    spec = bi(rnn("LSTM", **options), rnn("GRU", H_BACK, seed=1, **options))
    module, x = convert_layer(spec), torch.from_numpy(values(B, T, F))
    states: dict[str, tuple[Array, ...]] = {}
    model = ModelSpec(chain(spec), KERAS3)
    for _ in range(3):
        got = tuple(y.detach().numpy() for y in flat(module(x)))
        assert_same(got, compute(model, (x.numpy(),), states=states).outputs)


@pytest.mark.parametrize("cell", CELLS)
def test_a_row_with_nothing_valid_carries_what_it_had(cell: str) -> None:
    spec = rnn(cell, stateful=True, return_sequences=True, masked_output="previous_state")
    module = convert_layer(spec)
    x, mask = values(2, T, F), np.array([[True] * T, [False] * T])
    states: dict[str, tuple[Array, ...]] = {}
    model = ModelSpec(recurrent_call(spec), KERAS3)
    for m in (np.ones((2, T), bool), mask, ~mask):
        wanted = compute(model, (x, m), states=states).outputs
        assert_same(by_torch(module, x, m), wanted)
