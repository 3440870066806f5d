"""The recurrent modules of torch: every option against the reference in float64, and training."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import TORCH_GATES
from recurrent_parity import EXACT, assert_same, by_reference, by_torch, masks, ruled
from sampling import examples
from specs import (
    CELLS,
    H_BACK,
    KERAS3,
    MERGE_MODES,
    RULES,
    TF_KERAS,
    B,
    F,
    H,
    T,
    bi,
    chain,
    fixture,
    recurrent_call,
    rnn,
    values,
    with_options,
)
from torch import Tensor, nn

from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.layers.running import flat, reset_states
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


@settings(max_examples=60, deadline=None)
@given(any_layer(), st.lists(st.booleans(), min_size=T, max_size=T))
def test_a_masked_row_is_its_valid_steps_alone(spec: LayerSpec, bits: list[bool]) -> None:
    mask = np.array([bits])
    if not mask.any():
        return
    module, x = convert_layer(spec), values(1, T, F)
    whole, alone = by_torch(module, x, mask), by_torch(module, x[:, mask[0]])
    half = spec.parts.get("forward_layer", spec)
    turned = half.config["go_backwards"] and half.config["return_sequences"]
    rules = {one.semantics["masked_output"] for one in (spec.parts.values() or (spec,))}
    if not half.config["return_sequences"] or "zeros_unreversed" in rules:
        # the last step may be a masked one: the states alone are comparable
        if half.config["return_state"]:
            heads = 2 if spec.config.get("merge_mode", "") is None else 1
            assert_same(whole[heads:], alone[heads:])
        return
    order = mask[0][::-1] if turned else mask[0]
    heads = 2 if spec.config.get("merge_mode", "") is None else 1
    kept = tuple(y[:, order] if i < heads else y for i, y in enumerate(whole))
    assert_same(kept, alone)


# ---- torch's own modules -----------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN"])
@pytest.mark.parametrize("bias", [True, False])
def test_an_ordinary_layer_is_torchs_own_module(cell: str, bias: bool) -> None:
    spec = rnn(cell, use_bias=bias)
    for layer, directions in ((spec, 1), (bi(spec, rnn(cell, seed=1, use_bias=bias)), 2)):
        module = convert_layer(layer)
        assert isinstance(module, FUSED_CLASSES[cell])
        assert module.bidirectional is (directions == 2)
        assert module.batch_first
        twin = FUSED_CLASSES[cell](F, H, bias=bias, batch_first=True, bidirectional=directions == 2)
        assert list(module.state_dict()) == list(twin.state_dict())
        # the weights are worth the same in torch's own, unchanged module
        twin.double().load_state_dict(module.state_dict())
        out, _ = twin(torch.from_numpy(values(B, T, F)))
        expected = by_torch(convert_layer(with_sequences(layer)), values(B, T, F))
        assert_same((out.detach().numpy(),), expected)


def with_sequences(spec: LayerSpec) -> LayerSpec:
    if not spec.parts:
        return with_options(spec, return_sequences=True)
    halves = {k: with_options(half, return_sequences=True) for k, half in spec.parts.items()}
    return replace(spec, parts=halves)


def test_a_model_has_torchs_names_under_keras_names() -> None:
    model = build(fixture("keras-3.15.1/bi_lstm_concat_seq.h5").spec)
    assert isinstance(model.bidirectional, nn.LSTM)
    assert set(model.state_dict()) == {
        f"bidirectional.{kind}_l0{side}"
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        for side in ("", "_reverse")
    }


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


def test_a_relu_of_simple_rnn_is_fused_too() -> None:
    module = convert_layer(rnn("SimpleRNN", activation="relu"))
    assert isinstance(module, nn.RNN)
    assert module.nonlinearity == "relu"


# ---- dropout in training -----------------------------------------------------------------------

RATES = {"dropout": 0.4, "recurrent_dropout": 0.3}


class Recorder:
    """Stands in for ``functional.dropout`` and keeps every mask it makes."""

    def __init__(self) -> None:
        self.masks: list[Tensor] = []
        self.rates: list[float] = []

    def __call__(self, x: Tensor, p: float = 0.5, *_: Any, **__: Any) -> Tensor:
        generator = torch.Generator().manual_seed(len(self.masks))
        kept = torch.rand(x.shape, generator=generator) >= p
        self.masks.append(kept.to(x) / (1 - p))
        self.rates.append(p)
        return x * self.masks[-1]


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(torch.nn.functional, "dropout", recorder)
    return recorder


@pytest.mark.parametrize("implementation", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_one_mask_serves_all_steps_and_each_gate_has_its_own_in_implementation_1(
    cell: str, implementation: int, dropped: Recorder
) -> None:
    """With one row in the batch, dropping inputs is scaling rows of the kernels."""
    spec = rnn(cell, return_sequences=True, implementation=implementation, **RATES)
    x = values(1, T, F)
    out = by_torch(convert_layer(spec).train(), x)
    order = TORCH_GATES[spec.class_name]
    copies = len(order) if implementation == 1 else 1
    masks = [m[0].numpy() for m in dropped.masks]
    inputs = [m for m in masks if len(m) == F]
    recurrent = [m for m in masks if len(m) == H]
    assert len(inputs) == len(recurrent) == copies
    assert sorted(set(dropped.rates)) == [0.3, 0.4]
    scaled = dict(spec.weights)
    for name, kind in (("kernel", inputs), ("recurrent_kernel", recurrent)):
        blocks = np.split(scaled[name], len(order), axis=1)
        scaled[name] = np.concatenate(
            [
                block * kind[position % copies][:, None]
                for block, position in zip(blocks, order, strict=True)
            ],
            axis=1,
        )
    assert_same(out, by_reference(replace(spec, weights=scaled), x))


@pytest.mark.parametrize("cell", CELLS)
def test_each_direction_draws_its_own_masks(cell: str, dropped: Recorder) -> None:
    spec = bi(rnn(cell, **RATES), rnn(cell, seed=1, **RATES))
    by_torch(convert_layer(spec).train(), values(B, T, F))
    assert len(dropped.masks) == 2 * 2
    assert all(m.shape[0] == B for m in dropped.masks)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("masked", [True, False])
def test_dropout_does_nothing_in_eval_mode(cell: str, masked: bool, dropped: Recorder) -> None:
    spec = bi(rnn(cell, **RATES), rnn(cell, seed=1, **RATES))
    plain = bi(rnn(cell), rnn(cell, seed=1))
    x, mask = values(B, T, F), np.arange(B * T).reshape(B, T) % 3 > 0 if masked else None
    assert_same(by_torch(convert_layer(spec).eval(), x, mask), by_reference(plain, x, mask))
    assert not dropped.masks


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("cell", CELLS)
def test_rates_of_zero_and_one_drop_nothing(cell: str, rate: float, dropped: Recorder) -> None:
    """Keras drops for 0 < rate < 1 only."""
    spec = rnn(cell, dropout=rate, recurrent_dropout=rate)
    x = values(B, T, F)
    assert_same(by_torch(convert_layer(spec).train(), x), by_reference(spec, x))
    assert not dropped.masks


@pytest.mark.parametrize("implementation", [1, 2])
def test_dropout_keeps_the_expectation(implementation: int) -> None:
    """Linear and one step: the mean over many rows is the output without dropout."""
    torch.manual_seed(7)
    spec = rnn("SimpleRNN", activation="linear", implementation=implementation, **RATES)
    rows = 40_000
    x, state = values(1, 1, F), values(1, H, seed=3)
    many = np.repeat(x, rows, axis=0), None, (np.repeat(state, rows, axis=0),)
    (out,) = by_torch(convert_layer(spec).train(), *many)
    (wanted,) = by_reference(spec, x, None, (state,))
    spread = out.std(axis=0) / np.sqrt(rows)
    assert (out.std(axis=0) > 0.1).all()
    assert (np.abs(out.mean(axis=0) - wanted[0]) < 5 * spread).all()


def test_masks_differ_from_row_to_row_and_from_call_to_call() -> None:
    torch.manual_seed(7)
    module = convert_layer(rnn("LSTM", **RATES)).train()
    x = np.repeat(values(1, T, F), 2, axis=0)
    (first,), (second,) = by_torch(module, x), by_torch(module, x)
    assert np.abs(first[0] - first[1]).max() > 1e-3
    assert np.abs(first - second).max() > 1e-3


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


# ---- frozen layers -----------------------------------------------------------------------------
# See also test_what_keras_trains_after_load_model_has_requires_grad (test_training_parity.py).


@pytest.mark.parametrize("file", ["keras-2.2.4/frozen_layer.h5", "keras-3.15.1/frozen_layer.h5"])
def test_layers_frozen_in_keras_have_frozen_parameters(file: str) -> None:
    spec = fixture(file).spec
    model = build(spec)
    frozen = [one.name for one in spec.graph.layers if not one.config.get("trainable", True)]
    assert len(frozen) == 2
    assert frozen_in(model) == {n for n in trained_by_keras(model) if n.split(".")[0] in frozen}


def trained_by_keras(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters but torch's second bias of an LSTM or RNN, which Keras does not have."""
    return {
        name: p
        for name, p in model.named_parameters()
        if "bias_hh" not in name
        or not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.LSTM | nn.RNN)
    }


def frozen_in(model: nn.Module) -> set[str]:
    return {name for name, p in trained_by_keras(model).items() if not p.requires_grad}


def test_the_bias_that_keras_does_not_have_stays_zero_in_training() -> None:
    sequences = {"return_sequences": True}
    spec = chain(
        bi(rnn("LSTM", **sequences), rnn("LSTM", seed=1, **sequences)),
        rnn("SimpleRNN", 11, 2 * H, **sequences),
        rnn("GRU", 5, 11),
        shape=(None, T, F),
    )
    model = build(ModelSpec(spec, KERAS3)).train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.from_numpy(values(B, T, F))).square().sum().backward()
        optimizer.step()
    zeros = {name for name in before if name not in dict(model.named_parameters())}
    assert len(zeros) == 3  # two halves and the SimpleRNN; a GRU has two biases in Keras, too
    for one in (model, deepcopy(model), deepcopy(model).float()):
        for name, value in one.state_dict().items():
            assert value.any() != (name in zeros), name
            assert torch.equal(value.double(), before[name]) is (name in zeros), name


@pytest.mark.parametrize("which", ["forward_layer", "backward_layer"])
def test_a_frozen_half_of_a_pair_is_frozen_alone(which: str) -> None:
    spec = bi(rnn("LSTM"), rnn("GRU", H_BACK, seed=1))
    config: Any = spec.parts[which].config
    config["trainable"] = False
    module = convert_layer(spec)
    assert frozen_in(module) == {n for n in trained_by_keras(module) if n.startswith(which)}


@pytest.mark.parametrize("file", ["keras-2.2.4/nested_frozen.h5", "keras-3.15.1/nested_frozen.h5"])
def test_frozen_layers_of_a_nested_model_are_frozen(file: str) -> None:
    spec = fixture(file).spec
    (nested,) = (one for one in spec.graph.layers if one.graph is not None)
    frozen = {
        one.name: not one.config["trainable"]
        for one in nested.graph.layers
        if one.weights or one.parts
    }
    assert sorted(frozen.values()) == [False, True, True]
    inside = build(spec).get_submodule(nested.name)
    assert frozen_in(inside) == {n for n in trained_by_keras(inside) if frozen[n.split(".")[0]]}


# ---- stateful ----------------------------------------------------------------------------------


def stateful_model(**options: Any) -> nn.Module:
    given = {"stateful": True, "return_sequences": True, **options}
    pair = bi(rnn("LSTM", **given), rnn("LSTM", seed=1, **given))
    return build(ModelSpec(chain(pair, rnn("GRU before", 11, 2 * H, stateful=True)), TF_KERAS))


def test_a_stateful_model_carries_its_state_until_it_is_reset() -> None:
    model, x = stateful_model(), torch.from_numpy(values(B, T, F))
    first, second = model(x), model(x)
    assert (first - second).abs().max() > 1e-3
    reset_states(model)
    torch.testing.assert_close(model(x), first, atol=0, rtol=0)


def test_two_halves_of_a_sequence_are_the_whole() -> None:
    """Read forwards only: what is carried is all that the second half needs."""
    spec = rnn("LSTM", stateful=True, return_sequences=True)
    module, x = convert_layer(spec), torch.from_numpy(values(B, T, F))
    whole = convert_layer(with_options(spec, stateful=False))(x)
    halves = torch.cat((module(x[:, :3]), module(x[:, 3:])), dim=1)
    torch.testing.assert_close(halves, whole, atol=EXACT, rtol=EXACT)


def test_the_carried_state_is_detached() -> None:
    model, x = stateful_model(), torch.from_numpy(values(B, T, F))
    for _ in range(2):  # a second backward would fail through a kept graph
        model(x).sum().backward()
    carried = [
        s
        for module in model.modules()
        for state in getattr(module, "carried", None) or ()
        for s in state
    ]
    assert len(carried) == 2 * 2 + 1
    assert not any(s.requires_grad for s in carried)


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
