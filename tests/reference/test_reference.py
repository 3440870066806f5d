"""The reference: hand-computed cases, laws that must hold for every weight, and mutations."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import (
    CELLS,
    GENERATIONS,
    H_BACK,
    KERAS2,
    KERAS3,
    RULES,
    TF_KERAS,
    B,
    F,
    H,
    T,
    bi,
    chain,
    functional,
    layer,
    recurrent_call,
    rnn,
    values,
    with_options,
)

from keras2torch_birnn import reference, schema
from keras2torch_birnn.reference import EQUATIONS, Trace, compute
from keras2torch_birnn.reference.activations import FUNCTIONS, activate
from keras2torch_birnn.schema import ACTIVATION_OPTIONS, ACTIVATIONS, SCHEMA
from keras2torch_birnn.spec import (
    Array,
    Call,
    Generation,
    LayerSpec,
    ModelSpec,
    TensorRef,
    leaves,
)

MASK = np.array(
    [[True] * 7, [True, True, True, False, False, False, False], [False, True] * 3 + [False]]
)


# ---- running specs ------------------------------------------------------------------------------


def run(root: LayerSpec, *inputs: Array, generation: Generation = KERAS3, **more: Any) -> Trace:
    return compute(ModelSpec(root, generation), inputs, **more)


def outputs_of(spec: LayerSpec, x: Array, mask: Array | None = None, **more: Any) -> Any:
    """Output 0, 1, ... of one recurrent layer, with an optional mask and initial state."""
    state = more.pop("state", ())
    root = recurrent_call(spec, len(state), masked=mask is not None)
    m = np.ones(x.shape[:2], bool) if mask is None else mask
    return run(root, x, m, *state, **more).outputs


# ---- completeness ------------------------------------------------------------------------------


def test_every_class_of_the_schema_has_an_equation() -> None:
    assert set(EQUATIONS) == set(SCHEMA) - set(schema.CELLS)  # cells are part of an RNN


def test_every_activation_of_the_schema_has_a_function_with_the_same_defaults() -> None:
    assert set(FUNCTIONS) == set(ACTIVATIONS.values())
    for name, options in ACTIVATION_OPTIONS.items():
        defaults = {"name": name, **{key: option.default for key, option in options.items()}}
        x = values(4, 6) * 3
        np.testing.assert_array_equal(activate(defaults, x), activate(name, x))


def test_the_reference_imports_neither_torch_nor_h5py_nor_the_torch_side() -> None:
    allowed = {
        "keras2torch_birnn.lazy_array",
        "keras2torch_birnn.errors",
        "keras2torch_birnn.schema.custom_layers",
        "keras2torch_birnn.reference",
        "keras2torch_birnn.schema",
        "keras2torch_birnn.spec",
    }
    for page in Path(reference.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(page.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= {
                    "itertools",
                    "math",
                    "numpy",
                    "numpy.typing",
                }
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("keras2torch"):
                assert str(node.module).rpartition(".")[0] in allowed or node.module in allowed


# ---- activations by hand -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "x", "expected"),
    [
        ("linear", -2.0, -2.0),
        ("relu", -2.0, 0.0),
        ({"name": "relu", "max_value": 6.0}, 8.0, 6.0),
        ({"name": "relu", "threshold": 1.0}, 0.5, 0.0),
        ({"name": "relu", "threshold": 1.0}, 1.5, 1.5),
        ({"name": "relu", "threshold": 1.0, "negative_slope": 0.5}, -2.0, -1.5),
        ("relu6", 9.0, 6.0),
        ("leaky_relu", -2.0, -0.4),
        ("elu", -1.0, math.exp(-1) - 1),
        ({"name": "elu", "alpha": 2.0}, -1.0, 2 * (math.exp(-1) - 1)),
        ({"name": "celu", "alpha": 2.0}, -1.0, 2 * (math.exp(-0.5) - 1)),
        ("selu", -1.0, 1.0507009873554805 * 1.6732632423543772 * (math.exp(-1) - 1)),
        ("selu", 1.0, 1.0507009873554805),
        ("sigmoid", 1.0, 1 / (1 + math.exp(-1))),
        ("sigmoid", -800.0, 0.0),
        ("hard_sigmoid_0.2", 1.0, 0.7),
        ("hard_sigmoid_0.2", -2.5, 0.0),
        ("hard_sigmoid_1/6", 1.0, 2 / 3),
        ("hard_sigmoid_1/6", -2.5, 1 / 12),
        ("hard_silu", 1.0, 2 / 3),
        ("silu", 1.0, 1 / (1 + math.exp(-1))),
        ("hard_tanh", 1.5, 1.0),
        ("tanh_shrink", 1.0, 1 - math.tanh(1)),
        ("softplus", 1.0, math.log(math.e + 1)),
        ("softplus", 800.0, 800.0),
        ("softsign", -3.0, -0.75),
        ("log_sigmoid", -800.0, -800.0),
        ("mish", 1.0, math.tanh(math.log(math.e + 1))),
        ("exponential", 1.0, math.e),
        ("gelu", 1.0, (1 + math.erf(math.sqrt(0.5))) / 2),
        ({"name": "gelu", "approximate": True}, 1.0, 0.8411919906082768),
    ],
)
def test_activation_of_one_number(activation: Any, x: float, expected: float) -> None:
    assert activate(activation, np.array([x]))[0] == pytest.approx(expected, abs=1e-15)


def test_softmax_sums_to_one_and_survives_large_numbers() -> None:
    x = np.array([[1000.0, 1001.0, 999.0]])
    e = np.exp([0.0, 1.0, -1.0])
    np.testing.assert_allclose(activate("softmax", x)[0], e / e.sum())
    np.testing.assert_allclose(activate("log_softmax", x)[0], np.log(e / e.sum()))
    columns = activate({"name": "softmax", "axis": 0}, values(4, 3))
    np.testing.assert_allclose(columns.sum(axis=0), 1)


# ---- cells by hand -----------------------------------------------------------------------------


def test_lstm_gates_are_i_f_c_o() -> None:
    """One unit, one step, h0 = 0.5, c0 = -2, every number its own."""
    spec = replace(
        rnn("LSTM", units=1, features=1, return_state=True),
        weights={
            "kernel": np.array([[0.1, 0.2, 0.3, 0.4]]),
            "recurrent_kernel": np.array([[0.5, -0.6, 0.7, -0.8]]),
            "bias": np.array([0.01, 0.02, 0.03, 0.04]),
        },
    )
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
    spec = replace(
        rnn("GRU" if reset_after else "GRU before", units=1, features=1),
        weights={
            "kernel": np.array([[0.1, 0.2, 0.3]]),
            "recurrent_kernel": np.array([[0.5, -0.6, 0.7]]),
            "bias": np.array(bias if reset_after else bias[0]),
        },
    )
    d = bias[1] if reset_after else [0.0, 0.0, 0.0]
    z = 1 / (1 + math.exp(-(0.2 + 0.01 + 0.25 + d[0])))
    r = 1 / (1 + math.exp(-(0.4 + 0.02 - 0.3 + d[1])))
    n = math.tanh(0.6 + 0.03 + r * (0.35 + d[2]))
    (output,) = outputs_of(spec, np.array([[[2.0]]]), state=(np.array([[0.5]]),))
    assert output.item() == pytest.approx(z * 0.5 + (1 - z) * n, abs=1e-15)


def test_gru_before_resets_before_the_matrix_product() -> None:
    """Two units and a recurrent kernel that only swaps them: r must be the other unit's."""
    swap = np.array([[0.0, 1.0], [1.0, 0.0]])
    zero = np.zeros((2, 2))
    spec = replace(
        rnn("GRU before", units=2, features=1, activation="linear"),
        weights={
            "kernel": np.array([[-50.0, -50.0, 0.0, 50.0, 0.0, 0.0]]),  # z = 0, r = (1/2, 1)
            "recurrent_kernel": np.concatenate([zero, zero, swap], axis=1),
            "bias": np.zeros(6),
        },
    )
    (output,) = outputs_of(spec, np.array([[[1.0]]]), state=(np.array([[4.0, 10.0]]),))
    np.testing.assert_allclose(output, [[10.0, 2.0]], atol=1e-12)
    after = with_options(replace(spec, weights={**spec.weights, "bias": np.zeros((2, 6))}))
    after = with_options(after, reset_after=True)
    (output,) = outputs_of(after, np.array([[[1.0]]]), state=(np.array([[4.0, 10.0]]),))
    np.testing.assert_allclose(output, [[5.0, 4.0]], atol=1e-12)


def test_simple_rnn_by_hand() -> None:
    spec = replace(
        rnn("SimpleRNN", units=1, features=1, return_sequences=True, activation="linear"),
        weights={
            "kernel": np.array([[2.0]]),
            "recurrent_kernel": np.array([[3.0]]),
            "bias": np.array([0.5]),
        },
    )
    (output,) = outputs_of(spec, np.array([[[1.0], [2.0]]]))
    np.testing.assert_array_equal(output[0, :, 0], [2.5, 12.0])
    (output,) = outputs_of(with_options(spec, go_backwards=True), np.array([[[1.0], [2.0]]]))
    np.testing.assert_array_equal(output[0, :, 0], [4.5, 16.0])  # in the order of reading


def test_every_activation_of_an_lstm_is_the_configured_one() -> None:
    """Gates 2 x, candidate and output x / (1 + |x|): no tanh and no sigmoid is left."""
    spec = replace(
        rnn("LSTM", 1, 1, activation="softsign", recurrent_activation="linear"),
        weights={
            "kernel": np.full((1, 4), 2.0),
            "recurrent_kernel": np.zeros((1, 4)),
            "bias": np.zeros(4),
        },
    )
    (output,) = outputs_of(spec, np.array([[[1.0]]]))
    c = 2 * (2 / 3)
    assert output.item() == pytest.approx(2 * c / (1 + c), abs=1e-15)


def test_recurrent_kernels_are_multiplied_from_the_left() -> None:
    """State (1, 0) picks the kernel's first row, not its first column."""
    kernel = np.array([[1.0, 2.0], [3.0, 4.0]])
    spec = replace(
        rnn("SimpleRNN", 2, 1, activation="linear"),
        weights={"kernel": np.zeros((1, 2)), "recurrent_kernel": kernel, "bias": np.zeros(2)},
    )
    (output,) = outputs_of(spec, np.zeros((1, 1, 1)), state=(np.array([[1.0, 0.0]]),))
    np.testing.assert_array_equal(output, [[1.0, 2.0]])


def counter(rule: str, **config: Any) -> LayerSpec:
    """h' = h + x: a recurrent layer that can be checked in the head."""
    return replace(
        rnn("SimpleRNN", 1, 1, activation="linear", masked_output=rule, **config),
        weights={"kernel": np.eye(1), "recurrent_kernel": np.eye(1), "bias": np.zeros(1)},
    )


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
    """The same layer with its gates in another order."""
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


# ---- masks through layers ----------------------------------------------------------------------

IDS = np.array([[3, 1, 0, 2, 0], [0, 0, 0, 0, 0], [4, 4, 1, 2, 3]])


def embedding(**config: Any) -> LayerSpec:
    table = np.arange(12.0).reshape(6, 2) - 3
    return layer("Embedding", "emb", {"embeddings": table}, input_dim=6, output_dim=2, **config)


def test_embedding_looks_rows_up_and_masks_id_zero() -> None:
    trace = run(chain(embedding(mask_zero=True)), IDS.astype(float))
    np.testing.assert_array_equal(trace.outputs[0][0, 0], [3.0, 4.0])
    np.testing.assert_array_equal(trace.masks["emb"], IDS != 0)
    assert run(chain(embedding()), IDS).masks["emb"] is None


def test_embedding_cuts_fractions_but_masks_before_the_cut() -> None:
    trace = run(chain(embedding(mask_zero=True)), np.array([[0.5, 0.0, 1.9]]))
    np.testing.assert_array_equal(trace.outputs[0][0], [[-3, -2], [-3, -2], [-1, 0]])
    np.testing.assert_array_equal(trace.masks["emb"], [[True, False, True]])


def test_embedding_refuses_ids_out_of_range() -> None:
    with pytest.raises(ValueError, match="layer emb: ids from 0 on are expected, found -1"):
        run(chain(embedding()), np.array([[-1]]))
    with pytest.raises(IndexError, match="out of bounds"):
        run(chain(embedding()), np.array([[6]]))


def test_masking_compares_in_float32_and_zeroes() -> None:
    x = np.array([[[0.1, 0.1], [0.1, 2.0]]], dtype=np.float32)
    trace = run(chain(layer("Masking", mask_value=0.1)), x)
    np.testing.assert_array_equal(trace.masks["Masking"], [[False, True]])
    np.testing.assert_array_equal(trace.outputs[0][0, 0], [0, 0])
    assert trace.outputs[0][0, 1, 1] == 2


PASSING = {
    "Activation": {"activation": "tanh"},
    "LeakyReLU": {},
    "ELU": {},
    "ThresholdedReLU": {},
    "Dropout": {"rate": 0.5},
    "SpatialDropout1D": {"rate": 0.5},
    "GaussianNoise": {"stddev": 1.0},
    "GaussianDropout": {"rate": 0.5},
    "AlphaDropout": {"rate": 0.5},
    "ActivityRegularization": {},
}
DROPPING = {
    "Flatten": {},
    "Reshape": {"target_shape": (-1,)},
    "Permute": {"dims": (2, 1)},
    "MaxPooling1D": {},
    "AveragePooling1D": {},
    "GlobalMaxPooling1D": {},
    "GlobalAveragePooling1D": {},
}


@pytest.mark.parametrize("class_name", [*PASSING, *DROPPING])
def test_which_layers_pass_the_mask(class_name: str) -> None:
    spec = layer(class_name, **{**PASSING, **DROPPING}[class_name])
    trace = run(chain(embedding(mask_zero=True), spec), IDS)
    if class_name in DROPPING:
        assert trace.masks[class_name] is None
    else:
        np.testing.assert_array_equal(trace.masks[class_name], IDS != 0)


@pytest.mark.parametrize(
    ("version", "passes"), [("2.2.4-tf", False), ("2.4.0", False), ("2.15.0", True)]
)
def test_relu_passes_the_mask_only_in_newer_tf_keras(version: str, passes: bool) -> None:
    root = chain(embedding(mask_zero=True), layer("ReLU"))
    trace = run(root, IDS, generation=replace(TF_KERAS, version=version))
    assert (trace.masks["ReLU"] is not None) is passes


def test_recurrent_layers_pass_the_mask_with_sequences_only() -> None:
    for sequences in (True, False):
        halves = [rnn("GRU", seed=i, return_sequences=sequences, return_state=True) for i in (1, 2)]
        for merge_mode in ("concat", None):
            root = chain(embedding(mask_zero=True), bi(*halves, merge_mode))
            masks = run(root, IDS).masks["bi"]
            heads = 2 if merge_mode is None else 1
            assert len(masks) == heads + 2
            assert all((mask is not None) is sequences for mask in masks[:heads])
            assert all(mask is None for mask in masks[heads:])


def test_average_of_the_valid_steps() -> None:
    root = chain(embedding(mask_zero=True), layer("GlobalAveragePooling1D"))
    (found,) = run(root, IDS).outputs
    table = np.arange(12.0).reshape(6, 2) - 3
    np.testing.assert_allclose(found[0], table[[3, 1, 2]].mean(axis=0))
    assert np.isnan(found[1]).all()  # 0 / 0, as Keras
    ignoring = chain(embedding(mask_zero=True), layer("GlobalAveragePooling1D", use_mask=False))
    np.testing.assert_allclose(run(ignoring, IDS).outputs[0], table[IDS].mean(axis=1))


def masked_call(generation: Generation, **kwargs: Any) -> Trace:
    """Masked ids, a Bidirectional called with ``kwargs``, an average of what its mask says."""
    half = rnn("GRU", seed=1, return_sequences=True)
    specs = [
        layer("InputLayer", "ids"),
        layer("InputLayer", "m", dtype="bool"),
        layer("InputLayer", "s"),
        embedding(mask_zero=True),
        bi(half, rnn("GRU", seed=2, return_sequences=True)),
        layer("GlobalAveragePooling1D", "average"),
    ]
    calls = [
        Call("emb", 0, (TensorRef("ids"),)),
        Call("bi", 0, (TensorRef("emb"),), kwargs),
        Call("average", 0, (TensorRef("bi"),)),
    ]
    inputs = (TensorRef("ids"), TensorRef("m"), TensorRef("s"))
    root = functional(specs, calls, inputs, TensorRef("average"))
    other = np.ones(IDS.shape, bool)
    other[:, 0] = False
    return run(root, IDS, other, np.zeros((3, H)), generation=generation)


def test_ignore_mask_runs_unmasked_and_passes_the_mask_on() -> None:
    states = {"initial_state": (TensorRef("s"), TensorRef("s"))}
    used = masked_call(KERAS3, **states)
    ignored = masked_call(KERAS3, **states, ignore_mask=True)
    assert np.abs(used.layers["bi"] - ignored.layers["bi"]).max() > 0.01
    assert ignored.layers["bi"][1].all()  # the row of padding alone is computed, not zeroed
    np.testing.assert_array_equal(ignored.masks["bi"], IDS != 0)


def test_a_passed_mask_overrides_and_goes_on_in_newer_keras() -> None:
    for generation in GENERATIONS:
        trace = masked_call(generation, mask=TensorRef("m"))
        assert not trace.layers["bi"][:, 0].any()
        assert trace.layers["bi"][:, 1:].all()
        goes_on = np.ones(IDS.shape, bool)
        goes_on[:, 0] = False
        np.testing.assert_array_equal(
            trace.masks["bi"], IDS != 0 if generation is KERAS2 else goes_on
        )


def test_softmax_uses_its_mask_from_tf_keras_2_4_on() -> None:
    """A (B, T) mask on (B, T, C) values fits only where T = C and B is 1 or T: as Keras."""
    x, ids = values(1, 3, 3), np.array([[1, 0, 2]])
    specs = [
        layer("InputLayer", "x"),
        layer("InputLayer", "m", dtype="bool"),
        layer("Softmax", "soft"),
    ]
    call = Call("soft", 0, (TensorRef("x"),), {"mask": TensorRef("m")})
    root = functional(specs, [call], (TensorRef("x"), TensorRef("m")), TensorRef("soft"))
    e = np.exp(x)
    plain, masked = e / e.sum(axis=-1, keepdims=True), e * (ids != 0)
    masked = masked / masked.sum(axis=-1, keepdims=True)
    old = replace(TF_KERAS, version="2.2.4-tf")
    for generation, expected in (
        (KERAS2, plain),
        (old, plain),
        (TF_KERAS, masked),
        (KERAS3, masked),
    ):
        (found,) = run(root, x, ids != 0, generation=generation).outputs
        np.testing.assert_allclose(found, expected)
    with pytest.raises(ValueError, match=r"a mask of shape \(3, 1, 3\) does not fit values"):
        run(root, x, np.ones((3, 1, 3)))


# ---- TimeDistributed and nested models ---------------------------------------------------------

WORDS = np.array([[[1, 2, 0], [0, 0, 0]], [[3, 0, 4], [5, 5, 5]]])  # (B, T, words), 0 is padding


def test_time_distributed_is_the_layer_at_every_step() -> None:
    dense = layer("Dense", "d", {"kernel": values(F, 4), "bias": values(4)}, units=4)
    x = values(B, T, F)
    (found,) = run(chain(layer("TimeDistributed", "td", layer=dense)), x).outputs
    for t in range(T):
        np.testing.assert_array_equal(found[:, t], run(chain(dense), x[:, t]).outputs[0])


@pytest.mark.parametrize("generation", GENERATIONS, ids=lambda g: g.name)
def test_which_mask_goes_through_time_distributed(generation: Generation) -> None:
    """Over masked words: the inner layer gets each step's mask, and then the generations part."""
    inner = rnn("GRU")
    root = chain(embedding(mask_zero=True), layer("TimeDistributed", "td", layer=inner))
    trace = run(root, WORDS, generation=generation)
    mask = trace.masks["td"]
    if generation is KERAS3:
        np.testing.assert_array_equal(mask, WORDS != 0)  # as it came
    else:
        np.testing.assert_array_equal(mask, (WORDS != 0).any(axis=-1))
    step = run(chain(embedding(mask_zero=True), inner), WORDS[:, 0], generation=generation)
    np.testing.assert_array_equal(trace.outputs[0][:, 0], step.outputs[0])


def test_time_distributed_stacks_inner_masks_before_keras_3() -> None:
    root = chain(layer("TimeDistributed", "td", layer=embedding(mask_zero=True)))
    np.testing.assert_array_equal(run(root, WORDS, generation=TF_KERAS).masks["td"], WORDS != 0)
    assert run(root, WORDS, generation=KERAS3).masks["td"] is None


@pytest.mark.parametrize(
    ("version", "shape"), [("2.1.6", (None, 2, 3, 2)), ("2.2.4", (2, 2, 3, 2))]
)
def test_the_mask_passes_by_time_distributed_in_old_keras(version: str, shape: Any) -> None:
    inner = rnn("GRU")
    td = replace(layer("TimeDistributed", "td", layer=inner), input_shape=shape)
    generation = replace(KERAS2, version=version)
    trace = run(chain(embedding(mask_zero=True), td), WORDS, generation=generation)
    np.testing.assert_array_equal(trace.masks["td"], WORDS != 0)
    step = run(chain(embedding(), inner), WORDS[:, 0], generation=generation)
    np.testing.assert_array_equal(trace.outputs[0][:, 0], step.outputs[0])


def test_the_trace_names_layers_inside_wrappers_and_second_calls() -> None:
    inner = chain(embedding(mask_zero=True), rnn("GRU", name="words"), name="inner")
    root = chain(layer("TimeDistributed", "td", layer=inner), rnn("GRU", 3, H, name="text"))
    trace = run(root, WORDS)
    assert set(trace.layers) == {
        "chain_input", "td/inner/inner_input", "td/inner/emb", "td/inner/words", "td", "text"
    }  # fmt: skip
    assert trace.layers["td/inner/emb"].shape == (2, 2, 3, 2)
    np.testing.assert_array_equal(trace.masks["td/inner/emb"], WORDS != 0)
    np.testing.assert_array_equal(trace.layers["td"], trace.layers["td/inner/words"])
    twice = chain(embedding(), rnn("GRU", name="g"), name="twice")
    specs = [layer("InputLayer", "a"), layer("InputLayer", "b"), twice]
    calls = [Call("twice", i, (TensorRef(name),)) for i, name in enumerate("ab")]
    refs = (TensorRef("a"), TensorRef("b"))
    outputs = (TensorRef("twice", 1), TensorRef("twice"))
    both = run(functional(specs, calls, refs, outputs), IDS, IDS[::-1])
    assert {"twice/g", "twice#1/g", "twice", "twice#1"} <= set(both.layers)
    np.testing.assert_array_equal(both.outputs[0], both.outputs[1][::-1])


def test_masks_go_into_and_out_of_nested_models() -> None:
    body = chain(layer("Dropout", rate=0.5), name="body")
    head = chain(embedding(mask_zero=True), name="head")
    flat = chain(embedding(mask_zero=True), rnn("LSTM"))
    nested = chain(head, body, rnn("LSTM"))
    np.testing.assert_array_equal(run(nested, IDS).outputs[0], run(flat, IDS).outputs[0])
    np.testing.assert_array_equal(run(nested, IDS).masks["body/Dropout"], IDS != 0)


def test_nested_inputs_given_as_a_dict_are_matched_by_name() -> None:
    inner = functional(
        [layer("InputLayer", "p"), layer("InputLayer", "q"), layer("Flatten", "flat")],
        [Call("flat", 0, (TensorRef("q"),))],
        {"p": TensorRef("p"), "q": TensorRef("q")},
        (TensorRef("p"), TensorRef("flat")),
    )
    specs = [layer("InputLayer", "a"), layer("InputLayer", "b"), replace(inner, name="inner")]
    call = Call("inner", 0, ({"q": TensorRef("a"), "p": TensorRef("b")},))
    outputs = (TensorRef("inner", 0, 0), TensorRef("inner", 0, 1))
    root = functional(specs, [call], (TensorRef("a"), TensorRef("b")), outputs)
    a, b = values(2, 3, 5), values(2, 4)
    first, second = run(root, a, b).outputs
    np.testing.assert_array_equal(first, b)
    np.testing.assert_array_equal(second, a.reshape(2, 15))


# ---- the other layers, against definitions written out -----------------------------------------


def test_dense_contracts_the_last_axis() -> None:
    kernel, bias, x = values(F, 4), values(4), values(B, T, F)
    dense = layer("Dense", weights={"kernel": kernel, "bias": bias}, units=4, activation="relu")
    expected = np.maximum(np.einsum("btf,fu->btu", x, kernel) + bias, 0)
    np.testing.assert_allclose(run(chain(dense), x).outputs[0], expected)


@pytest.mark.parametrize("axis", [(-1,), (1,), (1, 2)])
def test_normalisations(axis: tuple[int, ...]) -> None:
    x = values(B, T, F)
    shape = tuple(x.shape[i] for i in axis)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    weights = {name: np.abs(values(*shape, seed=i)) for i, name in enumerate(names)}
    along = [size if i in {a % 3 for a in axis} else 1 for i, size in enumerate(x.shape)]
    gamma, beta, mean, variance = (weights[name].reshape(along) for name in names)
    batch = layer("BatchNormalization", weights=weights, axis=axis, epsilon=0.25)
    expected = gamma * (x - mean) / np.sqrt(variance + 0.25) + beta
    np.testing.assert_allclose(run(chain(batch), x).outputs[0], expected)
    own = layer("LayerNormalization", weights=weights, axis=axis, epsilon=0.25, center=False)
    mean = x.mean(axis=axis, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=axis, keepdims=True)
    expected = gamma * (x - mean) / np.sqrt(variance + 0.25)
    np.testing.assert_allclose(run(chain(own), x).outputs[0], expected)


def test_shapes() -> None:
    x = values(2, 3, 4)
    last, first = (layer("Flatten", data_format=f"channels_{where}") for where in ("last", "first"))
    np.testing.assert_array_equal(run(chain(last), x).outputs[0], x.reshape(2, 12))
    swapped = x.transpose(0, 2, 1).reshape(2, 12)
    np.testing.assert_array_equal(run(chain(first), x).outputs[0], swapped)
    reshaped = run(chain(layer("Reshape", target_shape=(2, -1))), x).outputs[0]
    np.testing.assert_array_equal(reshaped, x.reshape(2, 2, 6))
    permuted_ = run(chain(layer("Permute", dims=(2, 1))), x).outputs[0]
    np.testing.assert_array_equal(permuted_, x.transpose(0, 2, 1))
    repeated = run(chain(layer("RepeatVector", n=5)), x[:, 0]).outputs[0]
    np.testing.assert_array_equal(repeated, np.stack([x[:, 0]] * 5, axis=1))


def test_prelu_softmax_and_thresholded_relu() -> None:
    x, alpha = values(B, T, F), values(1, F)
    prelu = layer("PReLU", weights={"alpha": alpha}, shared_axes=(1,))
    np.testing.assert_array_equal(run(chain(prelu), x).outputs[0], np.where(x > 0, x, alpha * x))
    joint = run(chain(layer("Softmax", axis=(1, 2))), x).outputs[0]
    np.testing.assert_allclose(joint, np.exp(x) / np.exp(x).sum(axis=(1, 2), keepdims=True))
    cut = run(chain(layer("ThresholdedReLU", theta=0.5)), x).outputs[0]
    np.testing.assert_array_equal(cut, np.where(x > 0.5, x, 0))
    slope = run(chain(layer("ReLU", negative_slope=0.5, max_value=1.0)), x).outputs[0]
    np.testing.assert_allclose(slope, np.where(x > 0, np.minimum(x, 1), 0.5 * x))


def convolution(padding: str, **config: Any) -> LayerSpec:
    """One channel, kernel 100 10 1: the digits of the output are the inputs it saw."""
    kernel = np.array([100.0, 10.0, 1.0]).reshape(3, 1, 1)
    weights = {"kernel": kernel, "bias": np.zeros(1)}
    return layer("Conv1D", weights=weights, filters=1, kernel_size=3, padding=padding, **config)


@pytest.mark.parametrize(
    ("padding", "config", "expected"),
    [
        ("valid", {}, [123, 234, 345, 456]),
        ("same", {}, [12, 123, 234, 345, 456, 560]),
        ("causal", {}, [1, 12, 123, 234, 345, 456]),
        ("valid", {"strides": 2}, [123, 345]),
        ("same", {"strides": 2}, [123, 345, 560]),  # the odd step is padded at the end
        ("causal", {"strides": 2}, [1, 123, 345]),
        ("valid", {"dilation_rate": 2}, [135, 246]),
        ("same", {"dilation_rate": 2}, [13, 24, 135, 246, 350, 460]),
        ("causal", {"dilation_rate": 2}, [1, 2, 13, 24, 135, 246]),
    ],
)
def test_convolution_windows(padding: str, config: dict[str, int], expected: list[int]) -> None:
    x = np.arange(1.0, 7).reshape(1, 6, 1)
    found = run(chain(convolution(padding, **config)), x).outputs[0]
    np.testing.assert_array_equal(found[0, :, 0], expected)
    first = convolution(padding, **config, data_format="channels_first")
    found = run(chain(first), x.transpose(0, 2, 1)).outputs[0]
    np.testing.assert_array_equal(found[0, 0], expected)


def test_convolution_groups_take_their_own_channels() -> None:
    kernel = np.array([[[1.0, 10.0, 100.0, 1000.0]]])  # (1, 1 channel of 2, 4 filters)
    spec = layer(
        "Conv1D", weights={"kernel": kernel, "bias": np.arange(4.0)}, filters=4, kernel_size=1,
        groups=2, activation="linear",
    )  # fmt: skip
    found = run(chain(spec), np.array([[[2.0, 3.0]]])).outputs[0]
    np.testing.assert_array_equal(found[0, 0], [2, 21, 302, 3003])


@pytest.mark.parametrize(
    ("class_name", "config", "expected"),
    [
        ("MaxPooling1D", {}, [2, 4]),
        ("MaxPooling1D", {"padding": "same"}, [2, 4, 5]),
        ("MaxPooling1D", {"pool_size": 3, "strides": 1, "padding": "same"}, [2, 3, 4, 5, 5]),
        ("AveragePooling1D", {}, [1.5, 3.5]),
        ("AveragePooling1D", {"padding": "same"}, [1.5, 3.5, 5]),  # of the real steps only
        (
            "AveragePooling1D",
            {"pool_size": 3, "strides": 1, "padding": "same"},
            [1.5, 2, 3, 4, 4.5],
        ),
    ],
)
def test_pooling_windows(class_name: str, config: dict[str, Any], expected: list[float]) -> None:
    x = np.arange(1.0, 6).reshape(1, 5, 1)
    spec = layer(class_name, **config)
    np.testing.assert_array_equal(run(chain(spec), x).outputs[0][0, :, 0], expected)
    spec = with_options(spec, data_format="channels_first")
    found = run(chain(spec), x.transpose(0, 2, 1)).outputs[0]
    np.testing.assert_array_equal(found[0, 0], expected)


def test_global_pooling() -> None:
    x = values(B, T, F)
    for class_name, expected in (
        ("GlobalMaxPooling1D", x.max(axis=1)),
        ("GlobalAveragePooling1D", x.mean(axis=1)),
    ):
        np.testing.assert_allclose(run(chain(layer(class_name)), x).outputs[0], expected)
        kept = layer(class_name, keepdims=True, data_format="channels_first")
        found = run(chain(kept), x.transpose(0, 2, 1)).outputs[0]
        np.testing.assert_allclose(found, expected[:, :, np.newaxis])


# ---- precision, inputs, refusals ---------------------------------------------------------------


def test_float32_runs_in_float32_and_agrees() -> None:
    root = chain(bi(rnn("LSTM", seed=1), rnn("GRU", H_BACK, seed=2, activation="gelu")))
    x = values(B, T, F)
    (exact,), (rounded,) = run(root, x).outputs, run(root, x, dtype=np.float32).outputs
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact, atol=1e-5)


def test_inputs_are_cast_to_their_kind() -> None:
    for dtype, expected in (("int32", [1, 2]), ("bool", [True, True]), ("float32", [1.5, 2.5])):
        root = functional(
            [layer("InputLayer", "i", dtype=dtype)], [Call("i", 0, ())], TensorRef("i"),
            TensorRef("i"),
        )  # fmt: skip
        np.testing.assert_array_equal(run(root, np.array([1.5, 2.5])).outputs[0], expected)


def call_with(**kwargs: Any) -> LayerSpec:
    specs = [layer("InputLayer", "x"), rnn("GRU", name="gru")]
    return functional(
        specs, [Call("gru", 0, (TensorRef("x"),), kwargs)], TensorRef("x"), TensorRef("gru")
    )


@pytest.mark.parametrize(
    ("root", "inputs", "match"),
    [
        (chain(rnn("GRU")), [values(B, T, F)] * 2, "1 inputs are expected, found 2"),
        (chain(rnn("GRU")), [values(B, F)], r"an input \(B, T, F\) with T > 0 is expected"),
        (chain(rnn("GRU")), [values(B, 0, F)], r"with T > 0 is expected, found \(3, 0, 2\)"),
        (call_with(training=True), [values(B, T, F)], r"layer gru: unknown call arg.*training"),
        (
            call_with(initial_state=(values(B, 4),)),
            [values(B, T, F)],
            r"1 states of shapes \[\(3, 5\)\] are expected, found \[\(3, 4\)\]",
        ),
        (
            call_with(mask=np.ones((B, T + 1))),
            [values(B, T, F)],
            r"a mask of shape \(3, 7\) is expected, found \(3, 8\)",
        ),
        (chain(convolution("valid")), [values(1, 2, 1)], "a window of 3 does not fit the 2 steps"),
    ],
)
def test_what_does_not_fit_is_refused(root: LayerSpec, inputs: list[Array], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(root, *inputs)


def test_average_pooling_refuses_a_mask_of_another_shape() -> None:
    specs = [layer("InputLayer", "x"), layer("GlobalAveragePooling1D", "g")]
    call = Call("g", 0, (TensorRef("x"),), {"mask": np.ones((B, T, 1))})
    with pytest.raises(
        ValueError, match=r"a mask of shape \(3, 7\) is expected, found \(3, 7, 1\)"
    ):
        run(functional(specs, [call], TensorRef("x"), TensorRef("g")), values(B, T, F))


def test_stateful_inside_time_distributed_is_refused_before_keras_3() -> None:
    root = chain(layer("TimeDistributed", "td", layer=rnn("GRU", stateful=True)))
    with pytest.raises(ValueError, match="layer td: a stateful layer inside TimeDistributed"):
        run(root, values(B, T, 4, F), generation=TF_KERAS, states={})
    states: dict[str, tuple[Array, ...]] = {}
    run(root, values(B, T, 4, F), states=states)
    assert set(states) == {"td"}


def test_a_model_without_a_graph_is_refused() -> None:
    with pytest.raises(TypeError, match="layer body is a Sequential and has no graph"):
        run(chain(LayerSpec("Sequential", "body", {})), values(B, F))
