"""Ports that compute a layer in pieces, and mistakes in one branch of a model alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from graph_specs import spec_of
from test_hidden_mistakes import FLOATS, compare_spec, port_of, told
from torch import Tensor, nn

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.porting.observing import PortRun, Seen
from keras2torch_birnn.spec import ModelSpec

WORDS = ("Embedding", {"input_dim": 13, "output_dim": 5, "mask_zero": True})
IDS = [("x", "ids", (7,))]
TWO = [("x", "float", (7, 5)), ("z", "float", (7, 5))]


def _weights(spec: ModelSpec, path: str) -> dict[str, Tensor]:
    found = spec.graph.layer(path).weights
    return {name: torch.from_numpy(np.array(array)) for name, array in found.items()}


def test_zeros_are_found_beside_numbers_of_padded_steps() -> None:
    counts = np.array([[False, True, True], [True, True, True]])
    computed = np.where(counts[..., None], np.zeros((2, 3, 5)), 7.0)
    run = PortRun((), (Seen(computed, ""),), 1e-9)
    assert run.latest(np.zeros((2, 3, 5)), counts) is not None
    assert run.latest(np.ones((2, 3, 5)), counts) is None


class _ByStep(nn.Module):
    """Steps in lists, which are never put together; two mistakes behind the recurrent layer."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.table = _weights(spec, "layer_0")["embeddings"]
        self.dense, self.end = _weights(spec, "layer_2"), _weights(spec, "layer_3")
        parts = spec.graph.layer("layer_1").parts.values()
        self.halves = [
            {name: torch.from_numpy(np.array(array)) for name, array in half.weights.items()}
            for half in parts
        ]

    def forward(self, ids: Tensor) -> Tensor:
        counts = (ids != 0)[..., None]
        steps: list[Tensor] = [torch.zeros(len(ids), 3)] * ids.shape[1]
        for half, order in zip(self.halves, (range(7), range(6, -1, -1)), strict=True):
            h = torch.zeros(len(ids), 3)
            for t in order:
                read = self.table[ids[:, t]] @ half["kernel"] + half["bias"]
                new = torch.tanh(read + h @ half["recurrent_kernel"])
                h = torch.where(counts[:, t], new, h)
                steps[t] = steps[t] + torch.where(counts[:, t], new, 0)
        dense = [torch.relu(y @ self.dense["kernel"] + self.dense["bias"]) for y in steps]
        return torch.stack([y @ self.end["kernel"] for y in dense], 1)


@pytest.mark.thorough
def test_a_layer_of_which_the_port_has_single_steps_is_not_blamed() -> None:
    half = ("SimpleRNN", {"units": 3, "return_sequences": True})
    steps = [
        ("e", WORDS, "x"),
        ("b", ("Bidirectional", {"layer": half, "merge_mode": "sum"}), "e"),
        ("d", ("Dense", {"units": 11, "activation": "tanh"}), "b"),
        ("y", ("Dense", {"units": 2}), "d"),
    ]
    spec = spec_of({"inputs": IDS, "steps": steps, "outputs": "y"}, "3.15.1")
    for layer in ("layer_2", "layer_3"):
        spec.graph.layer(layer).weights["bias"][...] += 0.5
    report = compare_spec(spec, _ByStep(spec))
    assert told(report) == [("layer_2", "activation"), ("layer_3", "bias missing")], report.lines()


class _InPieces(nn.Module):
    """A layer in two parts that are never one tensor, then an unknown mistake."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.first, self.second = _weights(spec, "layer_0"), _weights(spec, "layer_1")

    def forward(self, x: Tensor) -> Tensor:
        (k, j), (b, c) = self.first["kernel"].split([2, 9], 1), self.first["bias"].split([2, 9])
        m, n = self.second["kernel"].split([2, 9])
        one = x @ k + b
        return torch.where(one > 0, one, one**2) @ m + (x @ j + c) @ n + self.second["bias"]


@pytest.mark.thorough
def test_a_layer_whose_values_the_port_has_in_pieces_is_not_blamed() -> None:
    steps = [("a", ("Dense", {"units": 11}), "x"), ("y", ("Dense", {"units": 3}), "a")]
    spec = spec_of({"inputs": FLOATS, "steps": steps, "outputs": "y"}, "3.15.1")
    report = compare_spec(spec, _InPieces(spec))
    assert told(report) == [("layer_1", "unexplained")], report.lines()


def test_values_are_held_in_whatever_place() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, 7, 5))
    counts = np.ones((3, 7), bool)
    counts[1, 4:] = False
    pieces = tuple(Seen(x[..., n : n + 1].swapaxes(0, 1), "") for n in range(5))
    assert PortRun((), pieces, 1e-6).holds(x)
    assert PortRun((), pieces, 1e-6).holds(np.where(counts[..., None], x, np.nan), counts)
    assert not PortRun((), pieces[1:], 1e-6).holds(x)
    assert not PortRun((), pieces, 1e-6).holds(x + 1e-7)
    assert not PortRun((), (), 1e-6).holds(x)


def _without_mask(right: Any, x: Tensor, **given: Any) -> Any:
    return right(x)


def test_of_several_readers_of_a_mask_the_one_that_does_not_use_it_is_named() -> None:
    """The attention uses it as well, where nothing counts."""
    steps = [
        ("e", WORDS, "x"),
        ("d", ("GRU", {"units": 5, "return_sequences": True}), "e"),
        ("y", ("Attention", {}), ["d", "z"]),
    ]
    inputs = [*IDS, ("z", "float", (11, 5))]
    spec = spec_of({"inputs": inputs, "steps": steps, "outputs": "y"}, "3.15.1")
    report = compare_spec(spec, port_of(spec, layer_1=_without_mask))
    assert told(report) == [("layer_1", "mask missing")], report.lines()


def _scaled(right: Any, x: Tensor) -> Any:
    return right(0.7 * x)


@pytest.mark.parametrize("dropped", [True, False])
def test_a_factor_in_one_branch_is_named_there(*, dropped: bool) -> None:
    """As an old dropout has it when it predicts; another layer reads the same tensor as it is."""
    steps = [
        ("a", ("Dense", {"units": 3, "activation": "tanh"}), "x"),
        ("b", ("Dense", {"units": 2}), "a"),
        ("f", ("Dropout", {"rate": 0.3}), "a"),
        ("y", ("Dense", {"units": 11, "activation": "tanh"}), "f" if dropped else "a"),
    ]
    steps = steps if dropped else [steps[0], steps[1], steps[3]]
    spec = spec_of({"inputs": FLOATS, "steps": steps, "outputs": ["b", "y"]}, "3.15.1")
    last = "layer_3" if dropped else "layer_2"
    report = compare_spec(spec, port_of(spec, **{last: _scaled}))
    wanted, what = ("layer_2", "output") if dropped else (last, "input 1")
    assert told(report) == [(wanted, "extra")], report.lines()
    assert report.findings[0].words == f"its {what} is multiplied by 0.7"


class _Carrying(nn.Module):
    """A layer that is called twice, and goes on where the first call ended."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        whole: Any = build_model(spec)
        self.shared, self.end = whole.get_submodule("shared"), whole.get_submodule("layer_3")

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        first = self.shared(x)
        y: Tensor = self.end(torch.cat([first, self.shared(z, initial_state=(first,))], -1))
        return y


def test_a_shared_layer_that_goes_on_with_its_states_is_named_in_its_call() -> None:
    graph = {
        "inputs": TWO,
        "shared": {"shared": ("GRU", {"units": 3})},
        "steps": [
            ("a", "shared", "x"),
            ("b", "shared", "z"),
            ("c", ("Concatenate", {}), ["a", "b"]),
            ("y", ("Dense", {"units": 11}), "c"),
        ],
        "outputs": "y",
    }
    spec = spec_of(graph, "3.15.1")
    names = dict(build_model(spec).named_modules())
    assert "shared" in names
    report = compare_spec(spec, _Carrying(spec))
    assert told(report) == [("shared#1", "other state")], report.lines()
    assert report.findings[0].words == (
        "it starts with the last states of shared, Keras with zeros"
    )


class _Letters(nn.Module):
    """Letters of words, of which padding is left out though they have no mask in Keras."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.table = _weights(spec, "layer_0")["embeddings"]
        inner = spec.graph.layer("layer_1").parts["layer"]
        self.cell = {name: torch.from_numpy(np.array(a)) for name, a in inner.weights.items()}

    def forward(self, ids: Tensor) -> Tensor:
        letters = ids.flatten(0, 1)
        h = torch.zeros(len(letters), 3)
        for t in range(letters.shape[1]):
            read = self.table[letters[:, t]] @ self.cell["kernel"] + self.cell["bias"]
            new = torch.tanh(read + h @ self.cell["recurrent_kernel"])
            h = torch.where((letters[:, t] != 0)[:, None], new, h)
        return h.unflatten(0, ids.shape[:2])


def test_letters_that_are_left_out_without_a_mask_in_keras_are_named() -> None:
    words = ("Embedding", {"input_dim": 5, "output_dim": 2})
    steps = [
        ("e", words, "x"),
        ("y", ("TimeDistributed", {"layer": ("SimpleRNN", {"units": 3})}), "e"),
    ]
    spec = spec_of({"inputs": [("x", "ids", (7, 5))], "steps": steps, "outputs": "y"}, "3.15.1")
    report = compare_spec(spec, _Letters(spec))
    assert told(report) == [("layer_1", "other mask")], report.lines()
    assert report.findings[0].words == (
        "id 0 of layer_0 is left out as padding, Keras reads it as data"
    )


def _attending(right: Any, x: list[Tensor], **given: Any) -> Tensor:
    query, value = x
    y: Tensor = torch.softmax(query @ value.mT / right.scale, -1) @ value
    return y


def test_scores_that_are_divided_by_the_learned_scale_are_named() -> None:
    steps = [("y", ("Attention", {"use_scale": True}), ["x", "z"])]
    spec = spec_of({"inputs": TWO, "steps": steps, "outputs": "y"}, "3.15.1")
    report = compare_spec(spec, port_of(spec, layer_0=_attending))
    assert told(report) == [("layer_0", "scale")], report.lines()


def _from_the_second(right: Any, x: Tensor) -> Tensor:
    y: Tensor = x[:, 1:].unfold(1, 3, 3).amax(-1)
    return y


def _every_third(right: Any, x: Tensor) -> Tensor:
    return x[:, :6:3]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (_from_the_second, "its windows begin at step 1: what is left over is dropped in front"),
        (_every_third, "takes the first step of each window (every so many steps)"),
    ],
)
def test_other_windows_of_a_pooling_are_named(wrong: Callable[..., Any], words: str) -> None:
    steps = [("p", ("MaxPooling1D", {"pool_size": 3}), "x"), ("y", ("Dense", {"units": 2}), "p")]
    spec = spec_of({"inputs": FLOATS, "steps": steps, "outputs": "y"}, "3.15.1")
    report = compare_spec(spec, port_of(spec, layer_0=wrong))
    assert [one.layer for one in report.findings] == ["layer_0"], report.lines()
    assert report.findings[0].words.startswith(words)


def _odd(right: Any, x: Tensor) -> Tensor:
    y = x @ right.weight.mT + right.bias
    return y * torch.sigmoid(2.5 * y)


@pytest.mark.thorough
def test_an_activation_that_is_none_of_the_known_ones_is_told() -> None:
    steps = [
        ("a", ("Dense", {"units": 11, "activation": "relu"}), "x"),
        ("y", ("Dense", {"units": 2}), "a"),
    ]
    spec = spec_of({"inputs": FLOATS, "steps": steps, "outputs": "y"}, "3.15.1")
    report = compare_spec(spec, port_of(spec, layer_0=_odd))
    assert told(report) == [("layer_0", "unexplained")], report.lines()
    words = "another activation is in its place, none of those that are known"
    assert report.findings[0].words == words


class _OneMask(nn.Module):
    """Two texts, of which the second is read with the mask of the first."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        whole: Any = build_model(spec)
        self.words, self.read, self.end = map(whole.get_submodule, ("words", "layer_3", "layer_5"))
        self.first = whole.get_submodule("layer_2")

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        table = self.words.weight
        counts = x != 0
        one, other = self.first(table[x], mask=counts), self.read(table[z], mask=counts)
        y: Tensor = self.end(torch.cat([one, other], -1))
        return y


def test_the_mask_of_another_text_is_named_where_it_is_used() -> None:
    """Two texts of the same words are padded differently in each row."""
    graph = {
        "inputs": [*IDS, ("z", "ids", (7,))],
        "shared": {"words": WORDS},
        "steps": [
            ("a", "words", "x"),
            ("b", "words", "z"),
            ("c", ("GRU", {"units": 3}), "a"),
            ("d", ("GRU", {"units": 3}), "b"),
            ("e", ("Concatenate", {}), ["c", "d"]),
            ("y", ("Dense", {"units": 2}), "e"),
        ],
        "outputs": "y",
    }
    spec = spec_of(graph, "3.15.1")
    report = compare_spec(spec, _OneMask(spec))
    assert told(report) == [("layer_3", "other mask")], report.lines()
    words = "the mask of words is used, in Keras another one arrives here"
    assert report.findings[0].words == words


def _halved(right: Any, x: Tensor, **given: Any) -> Any:
    return right(x, **given) / 2


def test_an_average_for_a_sum_is_not_told_at_the_layer_that_reads_it() -> None:
    """The port has the sum, too: half of its kernel would explain the layer behind it as well."""
    half = "LSTM", {"units": 3, "return_sequences": True}
    steps = [
        ("b", ("Bidirectional", {"layer": half, "merge_mode": "sum"}), "x"),
        ("y", ("GRU", {"units": 2}), "b"),
    ]
    spec = spec_of({"inputs": FLOATS, "steps": steps, "outputs": "y"}, "3.15.1")
    report = compare_spec(spec, port_of(spec, layer_0=_halved))
    assert told(report) == [("layer_0", "merge mode")], report.lines()
