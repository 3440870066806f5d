"""The reference: activations by hand, precision, refusals.

That its layers are those of Keras: ``parity/test_fixtures.py``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from reference_runs import run
from specs import (
    H_BACK,
    TF_KERAS,
    B,
    F,
    T,
    bi,
    chain,
    functional,
    layer,
    rnn,
    values,
)

from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.schema import ACTIVATION_OPTIONS
from keras2torch_birnn.spec import (
    Array,
    Call,
    LayerSpec,
    TensorRef,
)

# ---- completeness ------------------------------------------------------------------------------


def test_every_activation_has_the_defaults_of_the_schema() -> None:
    for name, options in ACTIVATION_OPTIONS.items():
        defaults = {"name": name, **{key: option.default for key, option in options.items()}}
        x = values(4, 6) * 3
        np.testing.assert_array_equal(activate(defaults, x), activate(name, x))


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


def test_layers_of_what_is_not_finite() -> None:
    x = np.full((1, 1, 3), [math.nan, math.inf, -math.inf])
    kept = run(chain(layer("ThresholdedReLU", theta=0.5)), x).outputs[0]
    np.testing.assert_array_equal(kept.ravel(), [math.nan, math.inf, math.nan])  # -inf * 0
    plain = run(chain(layer("ReLU")), x).outputs[0]
    np.testing.assert_array_equal(plain.ravel(), [math.nan, math.inf, 0])


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
        (
            chain(layer("MaxPooling1D", pool_size=3)),
            [values(1, 2, 1)],
            "a window of 3 does not fit the 2 steps",
        ),
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
