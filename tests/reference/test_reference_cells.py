"""The reference of recurrent layers: by hand, laws that hold for every weight, mutations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_runs import MASK, outputs_of, run
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
    layer,
    rnn,
    values,
    with_options,
)

from keras2torch_birnn.spec import (
    Array,
    Generation,
    LayerSpec,
    leaves,
)

# ---- cells by hand -----------------------------------------------------------------------------


def cell(kind: str, kernel: Any, recurrent_kernel: Any, bias: Any, **options: Any) -> LayerSpec:
    """A recurrent layer with these weights; a row of numbers is the kernel of one unit."""
    weights = {
        "kernel": np.array(kernel, float, ndmin=2),
        "recurrent_kernel": np.array(recurrent_kernel, float, ndmin=2),
        "bias": np.array(bias, float),
    }
    features, units = len(weights["kernel"]), len(weights["recurrent_kernel"])
    return replace(rnn(kind, units, features, **options), weights=weights)


@pytest.mark.parametrize("cell", CELLS)
def test_no_rows_give_no_rows(cell: str) -> None:
    assert outputs_of(rnn(cell, units=H), np.zeros((0, T, F)))[0].shape == (0, H)


def test_lstm_gates_are_i_f_c_o() -> None:
    """One unit, one step, h0 = 0.5, c0 = -2, every number its own."""
    kernel, recurrent, bias = (0.1, 0.2, 0.3, 0.4), (0.5, -0.6, 0.7, -0.8), (0.01, 0.02, 0.03, 0.04)
    spec = cell("LSTM", kernel, recurrent, bias, return_state=True)
    i, f, g, o = (0.2 + 0.25 + 0.01, 0.4 - 0.3 + 0.02, 0.6 + 0.35 + 0.03, 0.8 - 0.4 + 0.04)
    i, f, o = (1 / (1 + math.exp(-gate)) for gate in (i, f, o))
    c = f * -2.0 + i * math.tanh(g)
    h = o * math.tanh(c)
    state = (np.array([[0.5]]), np.array([[-2.0]]))
    output, out_h, out_c = outputs_of(spec, np.array([[[2.0]]]), state=state)
    assert (output.item(), out_h.item(), out_c.item()) == pytest.approx((h, h, c), abs=1e-15)


@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_gates_are_z_r_h(reset_after: bool) -> None:
    """One unit: h0 = 0.5, x = 2. Only the recurrent bias tells the two kinds apart."""
    bias = [[0.01, 0.02, 0.03], [0.04, 0.05, 0.06]]
    kind, used = ("GRU", bias) if reset_after else ("GRU before", bias[0])
    spec = cell(kind, (0.1, 0.2, 0.3), (0.5, -0.6, 0.7), used)
    d = bias[1] if reset_after else [0.0, 0.0, 0.0]
    z = 1 / (1 + math.exp(-(0.2 + 0.01 + 0.25 + d[0])))
    r = 1 / (1 + math.exp(-(0.4 + 0.02 - 0.3 + d[1])))
    n = math.tanh(0.6 + 0.03 + r * (0.35 + d[2]))
    (output,) = outputs_of(spec, np.array([[[2.0]]]), state=(np.array([[0.5]]),))
    assert output.item() == pytest.approx(z * 0.5 + (1 - z) * n, abs=1e-15)


def test_gru_before_resets_before_the_matrix_product() -> None:
    """Two units and a recurrent kernel that only swaps them: r must be the other unit's."""
    swap = [[0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 0]]
    kernel = (-50, -50, 0, 50, 0, 0)  # z = 0, r = (1/2, 1)
    spec = cell("GRU before", kernel, swap, np.zeros(6), activation="linear")
    (output,) = outputs_of(spec, np.array([[[1.0]]]), state=(np.array([[4.0, 10.0]]),))
    np.testing.assert_allclose(output, [[10.0, 2.0]], atol=1e-12)
    after = with_options(replace(spec, weights={**spec.weights, "bias": np.zeros((2, 6))}))
    after = with_options(after, reset_after=True)
    (output,) = outputs_of(after, np.array([[[1.0]]]), state=(np.array([[4.0, 10.0]]),))
    np.testing.assert_allclose(output, [[5.0, 4.0]], atol=1e-12)


def test_simple_rnn_by_hand() -> None:
    spec = cell("SimpleRNN", 2, 3, [0.5], return_sequences=True, activation="linear")
    (output,) = outputs_of(spec, np.array([[[1.0], [2.0]]]))
    np.testing.assert_array_equal(output[0, :, 0], [2.5, 12.0])
    (output,) = outputs_of(with_options(spec, go_backwards=True), np.array([[[1.0], [2.0]]]))
    np.testing.assert_array_equal(output[0, :, 0], [4.5, 16.0])  # in the order of reading


def test_every_activation_of_an_lstm_is_the_configured_one() -> None:
    """Gates 2 x, candidate and output x / (1 + |x|): no tanh and no sigmoid is left."""
    options = {"activation": "softsign", "recurrent_activation": "linear"}
    spec = cell("LSTM", np.full(4, 2.0), np.zeros(4), np.zeros(4), **options)
    (output,) = outputs_of(spec, np.array([[[1.0]]]))
    c = 2 * (2 / 3)
    assert output.item() == pytest.approx(2 * c / (1 + c), abs=1e-15)


def test_recurrent_kernels_are_multiplied_from_the_left() -> None:
    """State (1, 0) picks the kernel's first row, not its first column."""
    spec = cell("SimpleRNN", (0, 0), [[1, 2], [3, 4]], np.zeros(2), activation="linear")
    (output,) = outputs_of(spec, np.zeros((1, 1, 1)), state=(np.array([[1.0, 0.0]]),))
    np.testing.assert_array_equal(output, [[1.0, 2.0]])


def counter(rule: str, **config: Any) -> LayerSpec:
    """h' = h + x: a recurrent layer that can be checked in the head."""
    return cell("SimpleRNN", 1, 1, [0], activation="linear", masked_output=rule, **config)


# x = 1 2 4 8, steps 0 and 2 masked, h0 = 100
@pytest.mark.parametrize(
    ("rule", "backwards", "sequence", "last"),
    [
        ("previous_state", False, [100, 102, 102, 110], 110),
        ("previous_output", False, [0, 102, 102, 110], 110),
        ("zeros", False, [0, 102, 0, 110], 110),
        ("zeros_unreversed", False, [0, 102, 0, 110], 110),
        ("previous_state", True, [108, 108, 110, 110], 110),
        ("previous_output", True, [108, 108, 110, 110], 110),
        ("zeros", True, [108, 0, 110, 0], 0),
        ("zeros_unreversed", True, [0, 108, 0, 110], 0),
    ],
)
def test_what_stands_at_masked_steps(
    rule: str, backwards: bool, sequence: list[int], last: int
) -> None:
    x = np.array([[[1.0], [2.0], [4.0], [8.0]]])
    mask = np.array([[False, True, False, True]])
    spec = counter(rule, go_backwards=backwards, return_sequences=True, return_state=True)
    output, state = outputs_of(spec, x, mask, state=(np.array([[100.0]]),))
    np.testing.assert_array_equal(output[0, :, 0], sequence)
    assert state.item() == 110
    spec = with_options(spec, return_sequences=False)
    output, state = outputs_of(spec, x, mask, state=(np.array([[100.0]]),))
    assert (output.item(), state.item()) == (last, 110)


def test_a_row_without_valid_steps_keeps_its_state() -> None:
    x, mask, start = np.ones((1, 3, 1)), np.zeros((1, 3), bool), (np.array([[7.0]]),)
    expected = {"previous_state": 7, "previous_output": 0, "zeros": 0, "zeros_unreversed": 0}
    for rule, value in expected.items():
        output, state = outputs_of(counter(rule, return_state=True), x, mask, state=start)
        assert (output.item(), state.item()) == (value, 7)


# ---- laws --------------------------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)


masks = st.lists(st.booleans(), min_size=T, max_size=T)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(CELLS), st.booleans(), masks, seeds)
def test_a_masked_row_is_its_valid_steps_alone(
    cell: str, backwards: bool, bits: list[bool], seed: int
) -> None:
    mask = np.array([bits])
    x = values(1, T, F, seed=seed)
    spec = rnn(
        cell,
        seed=seed,
        go_backwards=backwards,
        return_sequences=True,
        return_state=True,
        masked_output="zeros",
    )
    output, *state = outputs_of(spec, x, mask)
    read = mask[0, ::-1] if backwards else mask[0]
    if not mask.any():
        assert not output.any() and not any(part.any() for part in state)
        return
    alone, *alone_state = outputs_of(spec, x[:, mask[0]])
    np.testing.assert_array_equal(output[:, read], alone)
    assert not output[:, ~read].any()
    for part, alone_part in zip(state, alone_state, strict=True):
        np.testing.assert_array_equal(part, alone_part)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(CELLS), st.sampled_from(RULES), seeds)
def test_backward_is_forward_of_the_flipped_sequence(cell: str, rule: str, seed: int) -> None:
    x = values(B, T, F, seed=seed)
    spec = rnn(cell, seed=seed, return_sequences=True, masked_output=rule)
    mask = MASK if rule != "zeros_unreversed" else None
    flipped = None if mask is None else mask[:, ::-1]
    (backward,) = outputs_of(with_options(spec, go_backwards=True), x, mask)
    (forward,) = outputs_of(spec, x[:, ::-1], flipped)
    np.testing.assert_array_equal(backward, forward)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(CELLS), st.integers(1, 5), seeds)
def test_padding_on_the_right_changes_nothing(cell: str, padding: int, seed: int) -> None:
    x = values(1, T, F, seed=seed)
    spec = bi(
        rnn(cell, seed=1, return_sequences=True, return_state=True),
        rnn(cell, H_BACK, seed=2, return_sequences=True, return_state=True),
    )
    plain = outputs_of(spec, x)
    padded = np.concatenate([x, values(1, padding, F)], axis=1)
    mask = np.arange(T + padding)[np.newaxis] < T
    output, *state = outputs_of(spec, padded, mask)
    np.testing.assert_array_equal(output[:, :T], plain[0])
    assert not output[:, T:].any()
    for part, plain_part in zip(state, plain[1:], strict=True):
        np.testing.assert_array_equal(part, plain_part)


@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_bidirectional_is_two_runs_and_a_merge(cell: str, sequences: bool) -> None:
    x = values(B, T, F)
    forward = rnn(cell, seed=1, return_sequences=sequences, return_state=True)
    backward = rnn("SimpleRNN", seed=2, return_sequences=sequences, return_state=True)
    y, *forward_state = outputs_of(forward, x, MASK)
    y_rev, *backward_state = outputs_of(backward, x[:, ::-1], MASK[:, ::-1])
    y_rev = y_rev[:, ::-1] if sequences else y_rev
    merged: dict[str | None, tuple[Array, ...]] = {
        "concat": (np.concatenate([y, y_rev], axis=-1),),
        "sum": (y + y_rev,),
        "mul": (y * y_rev,),
        "ave": ((y + y_rev) / 2,),
        None: (y, y_rev),
    }
    assert merged.keys() == set(MERGE_MODES)
    for merge_mode, heads in merged.items():
        root = chain(layer("Masking"), bi(forward, backward, merge_mode))
        trace = run(root, np.where(MASK[:, :, np.newaxis], x, 0))
        found = tuple(leaves(trace.layers["bi"]))
        expected = (*heads, *forward_state, *backward_state)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-15)


def test_initial_state_is_split_into_halves() -> None:
    x = values(B, T, F)
    forward = rnn("LSTM", seed=1, return_state=True)
    backward = rnn("LSTM", seed=2, return_state=True)
    state = tuple(values(B, H, seed=seed) for seed in range(4))
    found = outputs_of(bi(forward, backward), x, state=state)
    y, *forward_state = outputs_of(forward, x, state=state[:2])
    y_rev, *backward_state = outputs_of(
        with_options(backward, go_backwards=True), x, state=state[2:]
    )
    expected = (np.concatenate([y, y_rev], axis=-1), *forward_state, *backward_state)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_wrapped_layer_that_goes_backwards_reverses_the_whole_output() -> None:
    """Keras 2 and tf.keras: Bidirectional(LSTM(go_backwards=True))."""
    x = values(B, T, F)
    one, two = (rnn("LSTM", seed=seed, return_sequences=True) for seed in (1, 2))
    usual = bi(two, one)
    turned = replace(
        usual,
        parts={"forward_layer": with_options(one, go_backwards=True), "backward_layer": two},
    )
    (found,), (plain,) = outputs_of(turned, x), outputs_of(usual, x)
    np.testing.assert_array_equal(found[:, ::-1, :H], plain[:, :, H:])
    np.testing.assert_array_equal(found[:, ::-1, H:], plain[:, :, :H])


def test_states_are_carried_only_where_asked() -> None:
    x = values(B, 2 * T, F)
    spec = rnn("LSTM", stateful=True, return_sequences=True)
    root = chain(spec)
    (whole,) = run(root, x).outputs
    states: dict[str, tuple[Array, ...]] = {}
    (first,), (second,) = (run(root, part, states=states).outputs for part in (x[:, :T], x[:, T:]))
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)
    assert set(states) == {"lstm_0"}
    (alone,) = run(root, x[:, T:]).outputs
    assert np.abs(alone - second).max() > 0.01


def test_both_halves_carry_their_own_state() -> None:
    halves = [rnn("GRU", seed=seed, stateful=True) for seed in (1, 2)]
    states: dict[str, tuple[Array, ...]] = {}
    run(chain(bi(*halves), name="outer"), values(B, T, F), states=states)
    assert set(states) == {"bi/forward_layer", "bi/backward_layer"}


@pytest.mark.parametrize(("generation", "carried_wins"), [(TF_KERAS, True), (KERAS3, False)])
def test_a_carried_state_against_initial_state(generation: Generation, carried_wins: bool) -> None:
    spec = rnn("GRU", stateful=True)
    x, given_state, carried = values(B, T, F), values(B, H, seed=1), values(B, H, seed=2)
    states = {spec.name: (carried,)}
    (found,) = outputs_of(spec, x, state=(given_state,), states=states, generation=generation)
    start = carried if carried_wins else given_state
    (expected,) = outputs_of(with_options(spec, stateful=False), x, state=(start,))
    np.testing.assert_array_equal(found, expected)


# ---- mutations: a wrong reading must change the numbers ----------------------------------------


def permuted(spec: LayerSpec, order: Sequence[int]) -> LayerSpec:
    """Return the layer with its gates in another order."""
    weights = {
        name: np.concatenate([np.split(array, len(order), axis=-1)[i] for i in order], axis=-1)
        for name, array in spec.weights.items()
    }
    return replace(spec, weights=weights)


def changed(spec: LayerSpec, **weights: Array) -> LayerSpec:
    return replace(spec, weights={**spec.weights, **weights})


LSTM, GRU, BEFORE = rnn("LSTM"), rnn("GRU"), rnn("GRU before")


MUTANTS = {
    "LSTM i f": (LSTM, permuted(LSTM, (1, 0, 2, 3))),
    "LSTM c o": (LSTM, permuted(LSTM, (0, 1, 3, 2))),
    "LSTM i o": (LSTM, permuted(LSTM, (3, 1, 2, 0))),
    "LSTM recurrent kernel transposed": (
        LSTM,
        changed(LSTM, recurrent_kernel=LSTM.weights["recurrent_kernel"].reshape(H, 4, H)
                .transpose(2, 1, 0).reshape(H, 4 * H)),
    ),
    "GRU z r": (GRU, permuted(GRU, (1, 0, 2))),
    "GRU before z r": (BEFORE, permuted(BEFORE, (1, 0, 2))),
    "GRU bias rows": (GRU, changed(GRU, bias=GRU.weights["bias"][::-1])),
    "GRU reset": (
        with_options(BEFORE, use_bias=False),
        with_options(BEFORE, use_bias=False, reset_after=True),
    ),
    "bias": (LSTM, with_options(LSTM, use_bias=False)),
    "direction": (LSTM, with_options(LSTM, go_backwards=True)),
    "gate activation": (LSTM, with_options(LSTM, recurrent_activation="hard_sigmoid_0.2")),
    "hard sigmoids": (
        with_options(LSTM, recurrent_activation="hard_sigmoid_1/6"),
        with_options(LSTM, recurrent_activation="hard_sigmoid_0.2"),
    ),
    "activation": (LSTM, with_options(LSTM, activation="softsign")),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_differs(name: str) -> None:
    right, wrong = MUTANTS[name]
    x = values(B, T, F)
    assert np.abs(outputs_of(right, x)[0] - outputs_of(wrong, x)[0]).max() > 1e-3
