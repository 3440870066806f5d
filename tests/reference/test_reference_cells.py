"""The reference of recurrent layers: masked steps in the head, and states that are carried.

That its cells and merges are those of Keras: ``parity/test_fixtures.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reference_runs import outputs_of, run
from specs import (
    CELLS,
    KERAS3,
    TF_KERAS,
    B,
    F,
    H,
    T,
    bi,
    chain,
    rnn,
    values,
    with_options,
)

from keras2torch_birnn.spec import (
    Array,
    Generation,
    LayerSpec,
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


# ---- carried states ------------------------------------------------------------------------------


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
