"""Ports that compute a layer in pieces, and mistakes in one branch of a model alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from wrong_ports import IDS, TWO, chain_of, compare_spec, compare_with, model_of, only_finding, told

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.porting.observing import PortRun, Seen
from keras2torch_birnn.spec import LayerSpec, ModelSpec

WORDS = ("Embedding", {"input_dim": 13, "output_dim": 5, "mask_zero": True})


def _weights(layer: LayerSpec) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in layer.weights.items()}


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
        words, both, dense, end = map(spec.graph.layer, (f"layer_{n}" for n in range(4)))
        self.table = _weights(words)["embeddings"]
        self.dense, self.end = _weights(dense), _weights(end)
        self.halves = [_weights(half) for half in both.parts.values()]

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
    spec = chain_of(
        WORDS,
        ("Bidirectional", {"layer": half, "merge_mode": "sum"}),
        ("Dense", {"units": 11, "activation": "tanh"}),
        ("Dense", {"units": 2}),
        inputs=IDS,
    )
    for layer in ("layer_2", "layer_3"):
        spec.graph.layer(layer).weights["bias"][...] += 0.5
    report = compare_spec(spec, _ByStep(spec))
    assert told(report) == [("layer_2", "activation"), ("layer_3", "bias missing")], report.lines()


class _InPieces(nn.Module):
    """A layer in two parts that are never one tensor, then an unknown mistake."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.first, self.second = map(_weights, map(spec.graph.layer, ("layer_0", "layer_1")))

    def forward(self, x: Tensor) -> Tensor:
        (k, j), (b, c) = self.first["kernel"].split([2, 9], 1), self.first["bias"].split([2, 9])
        m, n = self.second["kernel"].split([2, 9])
        one = x @ k + b
        return torch.where(one > 0, one, one**2) @ m + (x @ j + c) @ n + self.second["bias"]


@pytest.mark.thorough
def test_a_layer_whose_values_the_port_has_in_pieces_is_not_blamed() -> None:
    spec = chain_of(("Dense", {"units": 11}), ("Dense", {"units": 3}))
    only_finding(compare_spec(spec, _InPieces(spec)), "layer_1", "unexplained")


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
    spec = model_of(
        ("e", WORDS, "x"),
        ("d", ("GRU", {"units": 5, "return_sequences": True}), "e"),
        ("y", ("Attention", {}), ["d", "z"]),
        inputs=[*IDS, ("z", "float", (11, 5))],
    )
    only_finding(compare_with(spec, layer_1=_without_mask), "layer_1", "mask missing")


def _scaled(right: Any, x: Tensor) -> Any:
    return right(0.7 * x)


@pytest.mark.parametrize("dropped", [True, False])
def test_a_factor_in_one_branch_is_named_there(*, dropped: bool) -> None:
    """As an old dropout has it when it predicts; another layer reads the same tensor as it is."""
    dropout = [("f", ("Dropout", {"rate": 0.3}), "a")] if dropped else []
    spec = model_of(
        ("a", ("Dense", {"units": 3, "activation": "tanh"}), "x"),
        ("b", ("Dense", {"units": 2}), "a"),
        *dropout,
        ("y", ("Dense", {"units": 11, "activation": "tanh"}), "f" if dropped else "a"),
        outputs=["b", "y"],
    )
    report = compare_with(spec, **{"layer_3" if dropped else "layer_2": _scaled})
    what = "output" if dropped else "input 1"
    assert only_finding(report, "layer_2", "extra").words == f"its {what} is multiplied by 0.7"


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
    spec = model_of(
        ("a", "shared", "x"),
        ("b", "shared", "z"),
        ("c", ("Concatenate", {}), ["a", "b"]),
        ("y", ("Dense", {"units": 11}), "c"),
        inputs=TWO,
        shared=("GRU", {"units": 3}),
    )
    finding = only_finding(compare_spec(spec, _Carrying(spec)), "shared#1", "other state")
    assert finding.words == "it starts with the last states of shared, Keras with zeros"


class _Letters(nn.Module):
    """Letters of words, of which padding is left out though they have no mask in Keras."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.table = _weights(spec.graph.layer("layer_0"))["embeddings"]
        self.cell = _weights(spec.graph.layer("layer_1").parts["layer"])

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
    each = ("TimeDistributed", {"layer": ("SimpleRNN", {"units": 3})})
    spec = chain_of(words, each, inputs=[("x", "ids", (7, 5))])
    finding = only_finding(compare_spec(spec, _Letters(spec)), "layer_1", "other mask")
    assert finding.words == "id 0 of layer_0 is left out as padding, Keras reads it as data"


def _attending(right: Any, x: list[Tensor], **given: Any) -> Tensor:
    query, value = x
    y: Tensor = torch.softmax(query @ value.mT / right.scale, -1) @ value
    return y


def test_scores_that_are_divided_by_the_learned_scale_are_named() -> None:
    spec = model_of(("y", ("Attention", {"use_scale": True}), ["x", "z"]), inputs=TWO)
    only_finding(compare_with(spec, layer_0=_attending), "layer_0", "scale")


def _from_the_second(right: Any, x: Tensor) -> Tensor:
    y: Tensor = x[:, 1:].unfold(1, 3, 3).amax(-1)
    return y


def _every_third(right: Any, x: Tensor) -> Tensor:
    return x[:, :6:3]


@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        (
            _from_the_second,
            "strides",
            "its windows begin at step 1: what is left over is dropped in front",
        ),
        (
            _every_third,
            "other operation",
            "takes the first step of each window (every so many steps)",
        ),
    ],
)
def test_other_windows_of_a_pooling_are_named(
    wrong: Callable[..., Any], kind: str, words: str
) -> None:
    spec = chain_of(("MaxPooling1D", {"pool_size": 3}), ("Dense", {"units": 2}))
    finding = only_finding(compare_with(spec, layer_0=wrong), "layer_0", kind)
    assert finding.words.startswith(words)


def _odd(right: Any, x: Tensor) -> Tensor:
    y = x @ right.weight.mT + right.bias
    return y * torch.sigmoid(2.5 * y)


@pytest.mark.thorough
def test_an_activation_that_is_none_of_the_known_ones_is_told() -> None:
    spec = chain_of(("Dense", {"units": 11, "activation": "relu"}), ("Dense", {"units": 2}))
    finding = only_finding(compare_with(spec, layer_0=_odd), "layer_0", "unexplained")
    assert finding.words == "another activation is in its place, none of those that are known"


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
    spec = model_of(
        ("a", "words", "x"),
        ("b", "words", "z"),
        ("c", ("GRU", {"units": 3}), "a"),
        ("d", ("GRU", {"units": 3}), "b"),
        ("e", ("Concatenate", {}), ["c", "d"]),
        ("y", ("Dense", {"units": 2}), "e"),
        inputs=[*IDS, ("z", "ids", (7,))],
        words=WORDS,
    )
    finding = only_finding(compare_spec(spec, _OneMask(spec)), "layer_3", "other mask")
    assert finding.words == "the mask of words is used, in Keras another one arrives here"
