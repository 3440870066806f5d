"""Mistakes in the formula of a layer, and sums of other tensors, are found and named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from graph_specs import spec_of
from specs import FIXTURES
from test_replaced_modules import compare_with
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.porting.changes import with_changes
from keras2torch_birnn.porting.gate_changes import gate_changes
from keras2torch_birnn.porting.kept_results import compute_anew
from keras2torch_birnn.porting.layer_changes import changes_of
from keras2torch_birnn.porting.merging_changes import _near_orders
from keras2torch_birnn.porting.observing import observe
from keras2torch_birnn.reference import EQUATIONS, compute
from keras2torch_birnn.reference.activations import sigmoid
from keras2torch_birnn.spec import Array

FOLDER = FIXTURES / "tf.keras-2.15.0"
X = np.random.default_rng(5).normal(size=(3, 7, 5))


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
    spec = _chain(("GRU", {"units": 2, "reset_after": after, "return_sequences": True}))
    found = [one for one in _changes(spec) if one.kind == "formula" and words in one.words]
    if resets_input and not after:
        assert not found
        return
    layer = spec.graph.layer("layer_0")
    w, u, bias = (np.asarray(layer.weights[k]) for k in ("kernel", "recurrent_kernel", "bias"))
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
    spec = _chain(("LSTM", {"units": 2, "return_sequences": True}))
    (change,) = [one for one in _changes(spec) if "h is the activation of o c" in one.words]
    layer = spec.graph.layer("layer_0")
    w, u, b = (np.asarray(layer.weights[k]) for k in ("kernel", "recurrent_kernel", "bias"))
    h, c, wanted = np.zeros((3, 2)), np.zeros((3, 2)), []
    for x in X.swapaxes(0, 1):
        i, f, new, o = np.split(x @ w + h @ u + b, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(new)
        h = np.tanh(sigmoid(o) * c)
        wanted.append(h)
    assert np.allclose(_outputs(spec, change), np.stack(wanted, 1), rtol=0, atol=1e-6)


def test_steps_that_are_read_backwards_may_each_keep_their_place() -> None:
    spec = _chain(("SimpleRNN", {"units": 2, "return_sequences": True}))
    (change,) = [one for one in _changes(spec) if "each output at its own step" in one.words]
    turned = compute(spec, [X[:, ::-1]]).outputs[0][:, ::-1]
    assert np.allclose(_outputs(spec, change), turned)


def test_a_softmax_over_all_steps_is_what_its_words_say() -> None:
    inner = "Dense", {"units": 2, "activation": "softmax"}
    spec = _chain(("TimeDistributed", {"layer": inner}))
    (change,) = [one for one in _changes(spec) if one.words.startswith("softmax over axis 1 (")]
    y = _outputs(spec, change)
    assert np.allclose(y.sum(axis=1), 1)
    assert not np.allclose(y.sum(axis=2), 1)


def test_one_row_of_one_gates_bias_is_left_out() -> None:
    layer = _chain(("GRU", {"units": 2, "reset_after": True})).graph.layer("layer_0")
    weights = {name: np.asarray(array) for name, array in layer.weights.items()}
    for number, letter in enumerate("zrn"):
        for row, name in enumerate(("input", "recurrent")):
            words = f"the {name} bias of {letter} is not added"
            (change,) = [make for _, told, make in gate_changes(layer) if told == words]
            wanted = weights["bias"].copy()
            wanted[row, 2 * number : 2 * number + 2] = 0
            assert np.array_equal(change(weights)["bias"], wanted)


def test_padding_that_repeats_the_border_is_what_its_words_say() -> None:
    spec = _chain(("ZeroPadding1D", {"padding": (1, 2)}))
    (change,) = [one for one in _changes(spec) if "(replicate)" in one.words]
    assert np.allclose(_outputs(spec, change), np.pad(X, [(0, 0), (1, 2), (0, 0)], mode="edge"))


@pytest.mark.parametrize(
    ("words", "divisor"),
    [
        ("the rows of the batch", lambda x: np.sqrt((x * x).sum(0))),
        ("taken over axis 1,", lambda x: np.sqrt((x * x).sum(1, keepdims=True))),
        ("the sum of their absolute values", lambda x: np.abs(x).sum(-1, keepdims=True)),
        ("their largest absolute value", lambda x: np.abs(x).max(-1, keepdims=True)),
        ("the square of their length", lambda x: (x * x).sum(-1, keepdims=True)),
    ],
)
def test_another_length_is_what_its_words_say(words: str, divisor: Any) -> None:
    spec = _chain(("UnitNormalization", {}))
    (change,) = [one for one in _changes(spec) if words in one.words]
    assert np.allclose(_outputs(spec, change), X / divisor(X), atol=1e-6)


def test_the_sides_of_a_square_kernel_are_exchanged() -> None:
    layer = "Conv2D", {"filters": 2, "kernel_size": (3, 3), "padding": "same"}
    steps = [("r", ("Reshape", {"target_shape": (7, 5, 1)}), "x"), ("y", layer, "r")]
    graph = {"inputs": [("x", "float", (7, 5))], "steps": steps, "outputs": "y"}
    spec = spec_of(graph, "3.15.1")
    inner = spec.graph.layer("layer_1")
    made = changes_of("layer_1", inner)
    (change,) = [one for one in made if one.words.startswith("height and width of the kernel")]
    turned = torch.from_numpy(np.asarray(inner.weights["kernel"])).permute(3, 2, 1, 0).double()
    bias = torch.from_numpy(np.asarray(inner.weights["bias"])).double()
    y = functional.conv2d(torch.from_numpy(X)[:, None], turned, bias, padding=1)
    assert np.allclose(_outputs(spec, change), y.permute(0, 2, 3, 1).numpy(), atol=1e-6)


def test_the_projections_of_some_roles_alone_are_split_in_the_wrong_order() -> None:
    layer = "MultiHeadAttention", {"num_heads": 3, "key_dim": 2}
    graph = {
        "inputs": [("x", "float", (7, 5))],
        "steps": [("y", layer, ("x", "x"))],
        "outputs": "y",
    }
    spec = spec_of(graph, "3.15.1")
    made = [one for one in _changes(spec) if "Keras has (heads, key_dim)" in one.words]
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
    layer = _chain(("GRU", {"units": 2, "reset_after": True})).graph.layer("layer_0")
    weights = {name: np.asarray(array) for name, array in layer.weights.items()}
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
    spec = _chain((name, {"groups": 1} if name.startswith("Group") else {}))
    words = f"1 + {weight} is used" if shift > 0 else f"{weight} - 1 is used"
    (change,) = [one for one in _changes(spec) if one.words.startswith(words)]
    layer = spec.graph.layer("layer_0")
    right = compute(spec, [X]).outputs[0]
    beta = np.asarray(layer.weights["beta"]) if "beta" in layer.weights else 0.0
    scale = np.asarray(layer.weights.get("gamma", layer.weights.get("scale")))
    wanted = right + shift if weight == "beta" else (right - beta) / scale * (scale + shift) + beta
    assert np.allclose(_outputs(spec, change), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "words", "torchs"),
    [
        ("MaxPooling1D", {"pool_size": 3}, "(ceil_mode=True)", nn.MaxPool1d(3, ceil_mode=True)),
        ("AveragePooling1D", {"pool_size": 3}, "(ceil_mode=True)", nn.AvgPool1d(3, ceil_mode=True)),
        (
            "AveragePooling1D",
            {"pool_size": 3, "strides": 2},
            "it pads 1 step at each end and keeps all windows, and what is padded",
            nn.AvgPool1d(3, 2, padding=1),
        ),
        (
            "AveragePooling1D",
            {"pool_size": 3, "strides": 2},
            "it pads 1 step at each end and keeps all windows",
            nn.AvgPool1d(3, 2, padding=1, count_include_pad=False),
        ),
        (
            "MaxPooling1D",
            {"pool_size": 2, "strides": 1},
            "it pads 1 step at each end and keeps all windows",
            nn.MaxPool1d(2, 1, padding=1),
        ),
    ],
)
def test_more_windows_of_a_pooling_are_what_their_words_say(
    name: str, options: Any, words: str, torchs: nn.Module
) -> None:
    spec = _chain((name, options))
    change = next(one for one in _changes(spec) if words in f"{one.words}")
    wanted = torchs(torch.from_numpy(X).mT).mT.numpy()
    assert np.allclose(_outputs(spec, change), wanted, atol=1e-6)


def test_more_windows_of_a_convolution_are_what_their_words_say() -> None:
    spec = _chain(("Conv1D", {"filters": 2, "kernel_size": 3, "padding": "causal"}))
    words = "it pads 2 steps at each end and keeps all windows"
    (change,) = [one for one in _changes(spec) if one.words.startswith(words)]
    weights = spec.graph.layer("layer_0").weights
    kernel, bias = (torch.from_numpy(np.asarray(weights[k])).double() for k in ("kernel", "bias"))
    y = functional.conv1d(torch.from_numpy(X).mT, kernel.permute(2, 1, 0), bias, padding=2).mT
    assert y.shape == (3, 9, 2)
    assert np.allclose(_outputs(spec, change), y.numpy(), atol=1e-6)


def test_an_activation_between_the_parts_of_a_separable_convolution() -> None:
    spec = _chain(("SeparableConv1D", {"filters": 2, "kernel_size": 3, "depth_multiplier": 2}))
    words = "relu between its depthwise and its pointwise part"
    (change,) = [one for one in _changes(spec) if one.words.startswith(words)]
    weights = spec.graph.layer("layer_0").weights
    depth, point, bias = (
        torch.from_numpy(np.asarray(weights[k])).double()
        for k in ("depthwise_kernel", "pointwise_kernel", "bias")
    )
    each = depth.permute(1, 2, 0).reshape(10, 1, 3)
    y = functional.conv1d(torch.from_numpy(X).mT, each, groups=5).relu()
    y = functional.conv1d(y, point.permute(2, 1, 0), bias).mT
    assert np.allclose(_outputs(spec, change), y.numpy(), atol=1e-6)


def test_an_activation_behind_the_projections_of_an_attention() -> None:
    layer = "MultiHeadAttention", {"num_heads": 3, "key_dim": 2}
    steps = [("y", layer, ("x", "x"))]
    spec = spec_of({"inputs": [("x", "float", (7, 5))], "steps": steps, "outputs": "y"}, "3.15.1")
    words = "relu follows the projections of query, key and value"
    change = [one for one in _changes(spec) if one.words.startswith(words)][-1]  # without masks
    w = {k: np.asarray(v, np.float64) for k, v in spec.graph.layer("layer_0").weights.items()}
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
    steps = [(tuple(names), ("Bidirectional", {"layer": half, "merge_mode": "sum"}), "x")]
    graph = {"inputs": [("x", "float", (7, 5))], "steps": steps, "outputs": names}
    spec = spec_of(graph, "3.15.1")
    whose = "the merged outputs" if merged else "the halves' outputs"
    end = f"h is taken from {whose} at the last step"
    (change,) = [one for one in _changes(spec) if one.words.endswith(end)]
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


def _chain(layer: Any) -> Any:
    steps = [("y", layer, "x")]
    return spec_of({"inputs": [("x", "float", (7, 5))], "steps": steps, "outputs": "y"}, "3.15.1")


def _changes(spec: Any) -> Any:
    return list(changes_of("layer_0", spec.graph.layer("layer_0")))


def _outputs(spec: Any, change: Any) -> Array:
    equations = with_changes([change], EQUATIONS, compute_anew)
    return compute(spec, [X], equations=equations).outputs[0]


def test_joined_steps_whose_features_take_turns_are_what_the_words_say() -> None:
    spec = _chain(("Reshape", {"target_shape": (1, 35)}))
    (change,) = [one for one in _changes(spec) if "take turns" in one.words]
    assert np.array_equal(_outputs(spec, change), X.swapaxes(1, 2).reshape(3, 1, 35))


def test_a_state_that_goes_on_in_a_time_distributed_reads_all_steps_as_one_sequence() -> None:
    inner = "GRU", {"units": 2}
    steps = [
        ("r", ("Reshape", {"target_shape": (7, 5, 1)}), "x"),
        ("y", ("TimeDistributed", {"layer": inner}), "r"),
    ]
    graph = {"inputs": [("x", "float", (7, 5))], "steps": steps, "outputs": "y"}
    spec = spec_of(graph, "3.15.1")
    layer = spec.graph.layer("layer_1")
    made = changes_of("layer_1", layer)
    (change,) = [one for one in made if "go on from step to step" in one.words]
    cell, h, wanted = layer.parts["layer"].weights, np.zeros((3, 2)), []
    w, u, (b, d) = (np.asarray(cell[k]) for k in ("kernel", "recurrent_kernel", "bias"))
    for word in X.swapaxes(0, 1):
        for x in word.T[:, :, np.newaxis]:
            read, kept = np.split(x @ w + b, 3, axis=-1), np.split(h @ u + d, 3, axis=-1)
            z, r = (sigmoid(read[one] + kept[one]) for one in (0, 1))
            h = z * h + (1 - z) * np.tanh(read[2] + r * kept[2])
        wanted.append(h)
    assert np.allclose(_outputs(spec, change), np.stack(wanted, 1), rtol=0, atol=1e-6)


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
    steps = [("y", ("AdditiveAttention", {"use_scale": True}), ["x", "x"])]
    spec = spec_of({"inputs": [("x", "float", (7, 5))], "steps": steps, "outputs": "y"}, "3.15.1")
    *_, change = [one for one in _changes(spec) if words in one.words]  # the last: unmasked
    scale = np.asarray(spec.graph.layer("layer_0").weights["scale"])
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
    (finding,) = compare_with(FOLDER / "batchnorm.keras", **{name: wrong}).findings
    assert (finding.layer, finding.kind) == (name, kind)
    assert words in finding.words


@pytest.mark.thorough
def test_a_sum_with_other_factors_is_named() -> None:
    source = FOLDER / "graph_residual.h5"
    report = compare_with(source, add=lambda _, given, **__: 2 * given[0] + 3 * given[1])
    (finding,) = report.findings
    assert (finding.layer, finding.kind) == ("add", "other sum"), "\n".join(report.lines())
    assert "3 times the output of " in finding.words


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
