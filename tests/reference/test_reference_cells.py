"""The reference of recurrent layers: masked steps in the head, laws that hold for every weight.

That its cells are those of Keras: ``parity/test_fixtures.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_runs import MASK, outputs_of, run
from specs import (
    CELLS,
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

# ---- masked steps in the head ------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_no_rows_give_no_rows(cell: str) -> None:
    assert outputs_of(rnn(cell, units=H), np.zeros((0, T, F)))[0].shape == (0, H)


def counter(rule: str, **config: Any) -> LayerSpec:
    """h' = h + x: a recurrent layer that can be checked in the head."""
    ones = {"kernel": np.ones((1, 1)), "recurrent_kernel": np.ones((1, 1)), "bias": np.zeros(1)}
    plain = rnn("SimpleRNN", 1, 1, activation="linear", masked_output=rule, **config)
    return replace(plain, weights=ones)


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
