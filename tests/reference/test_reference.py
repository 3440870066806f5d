"""The reference: completeness, activations and layers by hand, precision, refusals."""

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
    with_options,
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
    not_finite = np.full((1, 1, 3), [math.nan, math.inf, -math.inf])
    kept = run(chain(layer("ThresholdedReLU", theta=0.5)), not_finite).outputs[0]
    np.testing.assert_array_equal(kept.ravel(), [math.nan, math.inf, math.nan])  # -inf * 0
    plain = run(chain(layer("ReLU")), not_finite).outputs[0]
    np.testing.assert_array_equal(plain.ravel(), [math.nan, math.inf, 0])
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
