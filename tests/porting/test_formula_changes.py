"""Mistakes in the formula of a layer, and sums of other tensors, are found and named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from specs import FIXTURES
from torch import Tensor, nn
from torch.nn import functional
from wrong_ports import chain_of, compare_with, model_of, only_finding

from keras2torch_birnn.porting.changes import Change, with_changes
from keras2torch_birnn.porting.gate_changes import gate_changes
from keras2torch_birnn.porting.kept_results import compute_anew
from keras2torch_birnn.porting.layer_changes import changes_of
from keras2torch_birnn.porting.merging_changes import _near_orders
from keras2torch_birnn.porting.observing import observe
from keras2torch_birnn.reference import EQUATIONS, compute
from keras2torch_birnn.reference.activations import sigmoid
from keras2torch_birnn.spec import Array, LayerSpec, ModelSpec

FOLDER = FIXTURES / "tf.keras-2.15.0"
X = np.random.default_rng(5).normal(size=(3, 7, 5))
GRU_AFTER = ("GRU", {"units": 2, "reset_after": True})


def _weights_of(layer: LayerSpec) -> dict[str, Array]:
    return {name: np.asarray(array) for name, array in layer.weights.items()}


def _changes(spec: ModelSpec, words: str, layer: str = "layer_0") -> list[Change]:
    """Return the changes of a layer that are told by these words."""
    made = changes_of(layer, spec.graph.layer(layer))
    return [one for one in made if words in one.words]


def _outputs(spec: ModelSpec, change: Change) -> Array:
    equations = with_changes([change], EQUATIONS, compute_anew)
    return compute(spec, [X], equations=equations).outputs[0]


def _of_words(spec: ModelSpec, words: str, layer: str = "layer_0") -> Array:
    """Return what the only change of these words gives."""
    (change,) = _changes(spec, words, layer)
    return _outputs(spec, change)


def _usual(z: Any, h: Any, n: Any) -> Any:
    return z * h + (1 - z) * n


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("words", "combine", "resets_input"),
    [
        ("z h + n,", lambda z, h, n: z * h + n, False),
        ("h + (1 - z) n,", lambda z, h, n: h + (1 - z) * n, False),
        ("h + z n,", lambda z, h, n: h + z * n, False),
        ("z h + z n,", lambda z, h, n: z * h + z * n, False),
        ("the reset gate multiplies what n reads of the input", _usual, True),
    ],
)
def test_another_step_of_a_gru_is_what_its_words_say(
    words: str, combine: Any, resets_input: bool, after: bool
) -> None:
    spec = chain_of(("GRU", {"units": 2, "reset_after": after, "return_sequences": True}))
    found = [one for one in _changes(spec, words) if one.kind == "formula"]
    if resets_input and not after:
        assert not found
        return
    w, u, bias = _weights_of(spec.graph.layer("layer_0")).values()
    b, d = bias if after else (bias, 0 * bias)
    h, wanted = np.zeros((3, 2)), []
    for x in X.swapaxes(0, 1):
        read, kept = np.split(x @ w + b, 3, axis=-1), np.split(h @ u + d, 3, axis=-1)
        z, r = (sigmoid(read[one] + kept[one]) for one in (0, 1))
        old = r * kept[2] if after else (r * h) @ u[:, -2:]
        n = np.tanh(r * read[2] + old if resets_input else read[2] + old)
        h = combine(z, h, n)
        wanted.append(h)
    assert np.allclose(_outputs(spec, found[0]), np.stack(wanted, 1), rtol=0, atol=1e-6)


def test_an_activation_behind_the_output_gate_is_what_its_words_say() -> None:
    spec = chain_of(("LSTM", {"units": 2, "return_sequences": True}))
    w, u, b = _weights_of(spec.graph.layer("layer_0")).values()
    h, c, wanted = np.zeros((3, 2)), np.zeros((3, 2)), []
    for x in X.swapaxes(0, 1):
        i, f, new, o = np.split(x @ w + h @ u + b, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(new)
        h = np.tanh(sigmoid(o) * c)
        wanted.append(h)
    found = _of_words(spec, "h is the activation of o c")
    assert np.allclose(found, np.stack(wanted, 1), rtol=0, atol=1e-6)


def test_steps_that_are_read_backwards_may_each_keep_their_place() -> None:
    spec = chain_of(("SimpleRNN", {"units": 2, "return_sequences": True}))
    turned = compute(spec, [X[:, ::-1]]).outputs[0][:, ::-1]
    assert np.allclose(_of_words(spec, "each output at its own step"), turned)


def test_a_softmax_over_all_steps_is_what_its_words_say() -> None:
    inner = "Dense", {"units": 2, "activation": "softmax"}
    y = _of_words(chain_of(("TimeDistributed", {"layer": inner})), "softmax over axis 1 (")
    assert np.allclose(y.sum(axis=1), 1)
    assert not np.allclose(y.sum(axis=2), 1)


def test_one_row_of_one_gates_bias_is_left_out() -> None:
    layer = chain_of(GRU_AFTER).graph.layer("layer_0")
    weights = _weights_of(layer)
    for number, letter in enumerate("zrn"):
        for row, name in enumerate(("input", "recurrent")):
            words = f"the {name} bias of {letter} is not added"
            (change,) = [make for _, told, make in gate_changes(layer) if told == words]
            wanted = weights["bias"].copy()
            wanted[row, 2 * number : 2 * number + 2] = 0
            assert np.array_equal(change(weights)["bias"], wanted)


def _over(divisor: Any) -> Any:
    return lambda x: x / divisor(x)


def _by_torch(module: nn.Module) -> Any:
    return lambda x: module(torch.from_numpy(x).mT).mT.numpy()


UNIT = ("UnitNormalization", {})
MAXIMA, MEANS = ("MaxPooling1D", {"pool_size": 3}), ("AveragePooling1D", {"pool_size": 3})
MEANS_OF_TWO = ("AveragePooling1D", {"pool_size": 3, "strides": 2})
MAXIMA_OF_ONE = ("MaxPooling1D", {"pool_size": 2, "strides": 1})
KEEPS = "it pads 1 step at each end and keeps all windows"


@pytest.mark.parametrize(
    ("layer", "words", "wanted"),
    [
        (
            ("ZeroPadding1D", {"padding": (1, 2)}),
            "(replicate)",
            lambda x: np.pad(x, [(0, 0), (1, 2), (0, 0)], mode="edge"),
        ),
        (
            ("Reshape", {"target_shape": (1, 35)}),
            "take turns",
            lambda x: x.swapaxes(1, 2).reshape(3, 1, 35),
        ),
        (UNIT, "the rows of the batch", _over(lambda x: np.sqrt((x * x).sum(0)))),
        (UNIT, "taken over axis 1,", _over(lambda x: np.sqrt((x * x).sum(1, keepdims=True)))),
        (
            UNIT,
            "the sum of their absolute values",
            _over(lambda x: np.abs(x).sum(-1, keepdims=True)),
        ),
        (UNIT, "their largest absolute value", _over(lambda x: np.abs(x).max(-1, keepdims=True))),
        (UNIT, "the square of their length", _over(lambda x: (x * x).sum(-1, keepdims=True))),
        (MAXIMA, "(ceil_mode=True), Keras", _by_torch(nn.MaxPool1d(3, ceil_mode=True))),
        (MEANS, "(ceil_mode=True), Keras", _by_torch(nn.AvgPool1d(3, ceil_mode=True))),
        (MEANS_OF_TWO, f"{KEEPS}, and what is padded", _by_torch(nn.AvgPool1d(3, 2, padding=1))),
        (
            MEANS_OF_TWO,
            f"{KEEPS}, Keras",
            _by_torch(nn.AvgPool1d(3, 2, padding=1, count_include_pad=False)),
        ),
        (MAXIMA_OF_ONE, f"{KEEPS}, Keras", _by_torch(nn.MaxPool1d(2, 1, padding=1))),
    ],
)
def test_another_layer_without_weights_is_what_its_words_say(
    layer: Any, words: str, wanted: Any
) -> None:
    assert np.allclose(_of_words(chain_of(layer), words), wanted(X), atol=1e-6)


def test_the_sides_of_a_square_kernel_are_exchanged() -> None:
    image = ("Reshape", {"target_shape": (7, 5, 1)})
    spec = chain_of(image, ("Conv2D", {"filters": 2, "kernel_size": (3, 3), "padding": "same"}))
    kernel, bias = _tensors_of(spec, "layer_1")
    turned = kernel.permute(3, 2, 1, 0)
    y = functional.conv2d(torch.from_numpy(X)[:, None], turned, bias, padding=1)
    found = _of_words(spec, "height and width of the kernel", "layer_1")
    assert np.allclose(found, y.permute(0, 2, 3, 1).numpy(), atol=1e-6)


def _tensors_of(spec: ModelSpec, layer: str = "layer_0") -> list[Tensor]:
    found = _weights_of(spec.graph.layer(layer)).values()
    return [torch.from_numpy(array).double() for array in found]


HEADS = ("y", ("MultiHeadAttention", {"num_heads": 3, "key_dim": 2}), ("x", "x"))


def test_the_projections_of_some_roles_alone_are_split_in_the_wrong_order() -> None:
    spec = model_of(HEADS)
    made = _changes(spec, "Keras has (heads, key_dim)")
    ends = [one.words.partition("(heads, key_dim)")[2] for one in made]
    assert ends == [
        "",
        "; not in the output's",
        *(f"; of {some} alone" for some in ("query and key", "query", "key", "value")),
    ]
    usual = compute(spec, [X]).outputs[0]
    outputs = [usual, *(_outputs(spec, one) for one in made)]
    for number, one in enumerate(outputs):
        assert not any(np.allclose(one, other, atol=1e-4) for other in outputs[:number])


@pytest.mark.parametrize("letters", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("row", [slice(0, 1), slice(1, 2), slice(0, 2)])
def test_biases_of_two_gates_of_three_are_left_out(letters: Any, row: slice) -> None:
    layer = chain_of(GRU_AFTER).graph.layer("layer_0")
    weights = _weights_of(layer)
    name = {(0, 1): "input bias", (1, 2): "recurrent bias"}.get((row.start, row.stop), "bias")
    words = f"the {name} of {' and '.join('zrn'[one] for one in letters)} is not added, that of"
    (change,) = [make for _, told, make in gate_changes(layer) if told.startswith(words)]
    wanted = weights["bias"].copy()
    for one in letters:
        wanted[row, 2 * one : 2 * one + 2] = 0
    assert np.array_equal(change(weights)["bias"], wanted)


@pytest.mark.parametrize("shift", [1, -1])
@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("LayerNormalization", "gamma"),
        ("LayerNormalization", "beta"),
        ("BatchNormalization", "gamma"),
        ("GroupNormalization", "beta"),
        ("RMSNormalization", "scale"),
    ],
)
def test_a_zero_centred_weight_of_a_norm_is_what_its_words_say(
    name: str, weight: str, shift: int
) -> None:
    spec = chain_of((name, {"groups": 1} if name.startswith("Group") else {}))
    words = f"1 + {weight} is used" if shift > 0 else f"{weight} - 1 is used"
    weights = _weights_of(spec.graph.layer("layer_0"))
    right = compute(spec, [X]).outputs[0]
    beta = weights.get("beta", 0.0)
    scale = weights["scale" if "scale" in weights else "gamma"]
    wanted = right + shift if weight == "beta" else (right - beta) / scale * (scale + shift) + beta
    assert np.allclose(_of_words(spec, words), wanted, atol=1e-5)


def test_more_windows_of_a_convolution_are_what_their_words_say() -> None:
    spec = chain_of(("Conv1D", {"filters": 2, "kernel_size": 3, "padding": "causal"}))
    kernel, bias = _tensors_of(spec)
    y = functional.conv1d(torch.from_numpy(X).mT, kernel.permute(2, 1, 0), bias, padding=2).mT
    assert y.shape == (3, 9, 2)
    found = _of_words(spec, "it pads 2 steps at each end and keeps all windows")
    assert np.allclose(found, y.numpy(), atol=1e-6)


def test_an_activation_between_the_parts_of_a_separable_convolution() -> None:
    spec = chain_of(("SeparableConv1D", {"filters": 2, "kernel_size": 3, "depth_multiplier": 2}))
    depth, point, bias = _tensors_of(spec)
    each = depth.permute(1, 2, 0).reshape(10, 1, 3)
    y = functional.conv1d(torch.from_numpy(X).mT, each, groups=5).relu()
    y = functional.conv1d(y, point.permute(2, 1, 0), bias).mT
    found = _of_words(spec, "relu between its depthwise and its pointwise part")
    assert np.allclose(found, y.numpy(), atol=1e-6)


def test_an_activation_behind_the_projections_of_an_attention() -> None:
    spec = model_of(HEADS)
    *_, change = _changes(spec, "relu follows the projections of query, key and value")  # unmasked
    w = _weights_of(spec.graph.layer("layer_0"))
    q, k, v = (
        np.maximum(np.einsum("btd,dnw->bntw", X, w[f"{one}/kernel"]) + w[f"{one}/bias"][:, None], 0)
        for one in ("query", "key", "value")
    )
    y = functional.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v))).numpy()
    y = np.einsum("bntw,nwd->btd", y, w["attention_output/kernel"]) + w["attention_output/bias"]
    assert np.allclose(_outputs(spec, change), y, atol=1e-6)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
@pytest.mark.parametrize("merged", [True, False])
def test_outputs_that_stand_for_last_states_are_what_their_words_say(
    name: str, merged: bool
) -> None:
    half = name, {"units": 2, "return_sequences": True, "return_state": True}
    count = 4 if name == "LSTM" else 2
    names = ["y", *(f"s{one}" for one in range(count))]
    both = ("Bidirectional", {"layer": half, "merge_mode": "sum"})
    spec = model_of((tuple(names), both, "x"), outputs=names)
    whose = "the merged outputs" if merged else "the halves' outputs"
    end = f"h is taken from {whose} at the last step"
    (change,) = [one for one in _changes(spec, end) if one.words.endswith(end)]
    y, *states = compute(spec, [X]).outputs

    equations = with_changes([change], EQUATIONS, compute_anew)
    found = compute(spec, [X], equations=equations).outputs
    assert np.array_equal(found[0], y)
    forward, backward = (1, 3) if name == "LSTM" else (1, 2)
    wanted = (y[:, -1], y[:, -1]) if merged else (states[0], y[:, -1] - states[0])
    assert np.allclose(found[forward], wanted[0], atol=1e-6)
    assert np.allclose(found[backward], wanted[1], atol=1e-6)
    if name == "LSTM":
        assert np.array_equal(found[2], states[1])
        assert np.array_equal(found[4], states[3])


def test_a_state_that_goes_on_in_a_time_distributed_reads_all_steps_as_one_sequence() -> None:
    inner = "GRU", {"units": 2}
    letters = ("Reshape", {"target_shape": (7, 5, 1)})
    spec = chain_of(letters, ("TimeDistributed", {"layer": inner}))
    h, wanted = np.zeros((3, 2)), []
    w, u, (b, d) = _weights_of(spec.graph.layer("layer_1").parts["layer"]).values()
    for word in X.swapaxes(0, 1):
        for x in word.T[:, :, np.newaxis]:
            read, kept = np.split(x @ w + b, 3, axis=-1), np.split(h @ u + d, 3, axis=-1)
            z, r = (sigmoid(read[one] + kept[one]) for one in (0, 1))
            h = z * h + (1 - z) * np.tanh(read[2] + r * kept[2])
        wanted.append(h)
    found = _of_words(spec, "go on from step to step", "layer_1")
    assert np.allclose(found, np.stack(wanted, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "score"),
    [
        ("inside of the tanh", lambda q, k, v: np.tanh(v * (q + k)).sum(-1)),
        ("one by one", lambda q, k, v: (v * (np.tanh(q) + np.tanh(k))).sum(-1)),
    ],
)
def test_another_score_of_an_additive_attention_is_what_its_words_say(
    words: str, score: Any
) -> None:
    spec = model_of(("y", ("AdditiveAttention", {"use_scale": True}), ["x", "x"]))
    *_, change = _changes(spec, words)  # the last: unmasked
    (scale,) = _weights_of(spec.graph.layer("layer_0")).values()
    powers = np.exp(score(X[:, :, np.newaxis], X[:, np.newaxis], scale))
    wanted = (powers / powers.sum(-1, keepdims=True)) @ X
    assert np.allclose(_outputs(spec, change), wanted, rtol=0, atol=1e-6)


# ---- compare -------------------------------------------------------------------------------------


def quick_gelu(right: Any, x: Tensor) -> Tensor:
    y: Tensor = right(x)
    return y * torch.sigmoid(1.702 * y)


def early_beta(right: Any, x: Tensor) -> Tensor:
    y = x.movedim(1, -1)  # the channels come second
    normal = (y - right.running_mean) / torch.sqrt(right.running_var + right.eps)
    return ((normal + right.bias) * right.weight).movedim(-1, 1)


def unbiased(right: Any, x: Tensor) -> Tensor:
    """Normalize by the batch, as with ``x.var`` of torch."""
    y = x.movedim(1, -1)
    normal = (y - y.mean((0, 1))) / torch.sqrt(y.var((0, 1)) + right.eps)
    return (normal * right.weight + right.bias).movedim(-1, 1)


@pytest.mark.parametrize(
    ("name", "wrong", "kind", "words"),
    [
        ("dense", quick_gelu, "activation", "a quick gelu"),
        ("batch_normalization_2", early_beta, "formula", "beta is added before gamma multiplies"),
        ("batch_normalization_2", unbiased, "training mode", "divides by n - 1"),
    ],
)
def test_a_formula_of_the_ports_own_is_named(name: str, wrong: Any, kind: str, words: str) -> None:
    report = compare_with(FOLDER / "batchnorm.keras", **{name: wrong})
    assert words in only_finding(report, name, kind).words


@pytest.mark.thorough
def test_a_sum_with_other_factors_is_named() -> None:
    source = FOLDER / "graph_residual.h5"
    report = compare_with(source, add=lambda _, given, **__: 2 * given[0] + 3 * given[1])
    assert "3 times the output of " in only_finding(report, "add", "other sum").words


class _Sums(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.relu(2 * x - 0.5 * y)


def test_factors_of_a_sum_are_found_and_those_that_follow_are_zero() -> None:
    x, y = np.random.default_rng(2).normal(size=(2, 5, 7))
    run = observe(_Sums(), [x, y], torch.float64, 1e-9)
    (factors,) = run.sums([x, y, x + y])
    assert np.allclose(factors, [2, -0.5, 0])
    assert not list(run.sums([x, x]))
    assert not list(run.sums([np.full_like(x, np.inf), y]))


def test_inputs_are_tried_in_all_orders_near_the_right_one() -> None:
    orders = list(_near_orders(5))
    assert len(set(orders)) == len(orders) == 22
    assert (0, 1, 3, 2, 4) in orders
    assert (4, 0, 1, 2, 3) in orders
    assert (4, 1, 2, 3, 0) in orders
    assert (0, 1, 2, 3, 4) not in orders
