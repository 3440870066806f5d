"""Other statistics, joins of steps and of states, and exchanged roles of two layers are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from wrong_ports import FLOATS, IDS, chain_of, compare_spec, compare_with, model_of, only_finding

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.porting.batches import batches
from keras2torch_birnn.porting.observing import PortRun, Seen

CONV = ("Conv1D", {"filters": 3, "kernel_size": 3, "padding": "same"})
GRU = ("GRU", {"units": 3})
# A normalizer that two layers read.
NORMALIZED = (
    ("n", ("BatchNormalization", {"epsilon": 2e-3}), "x"),
    ("c", ("Conv1D", {"filters": 3, "kernel_size": 3}), "n"),
    ("r", ("Cropping1D", {"cropping": (3, 0)}), "n"),
    ("d", ("Dense", {"units": 2}), "r"),
)


def _normalize(right: Any, x: Tensor, order: tuple[int, int, int]) -> Tensor:
    names = right.weight, right.bias, right.running_mean
    gamma, beta, mean = (names[one].to(x)[:, None] for one in order)
    deviation = (right.running_var + right.eps).to(x).sqrt()[:, None]
    y: Tensor = (x - mean) * (gamma / deviation) + beta
    return y


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ((0, 2, 1), "beta and moving_mean are exchanged"),
        ((2, 1, 0), "gamma and moving_mean are exchanged"),
        (
            (1, 2, 0),
            "beta is in the place of gamma, moving_mean is in the place of beta, gamma "
            "is in the place of moving_mean",
        ),
    ],
)
def test_weights_in_any_order_are_named(order: Any, words: str) -> None:
    spec = model_of(*NORMALIZED, outputs=["c", "d"])
    report = compare_with(spec, layer_0=lambda right, x: _normalize(right, x, order))
    (finding,) = report.findings
    assert (finding.layer, finding.words) == ("layer_0", words)


def test_of_two_sums_that_a_port_computes_the_one_that_it_goes_on_with_is_told() -> None:
    spec = model_of(*NORMALIZED, outputs=["c", "d"])
    one, two = torch.randn(2, 5, 1, generator=torch.Generator().manual_seed(3)).double()
    report = compare_with(spec, layer_0=lambda right, x: right(x) + one + two)
    only_finding(report, "layer_0", "extra")


def test_what_is_added_is_told_of_each_tensor() -> None:
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1)).double().numpy()
    one, two = np.arange(7.0), np.arange(7.0) ** 2
    run = PortRun((), (Seen(x + one, ""), Seen(x + one, ""), Seen(x + two, "")), 1e-9)
    found = list(run.added(x))
    assert [np.allclose(a, b) for a, b in zip(found, (one, two), strict=True)] == [True, True]


def _scaled(x: Tensor, dims: tuple[int, ...], *, unbiased: bool) -> Tensor:
    mean = x.mean(dims, keepdim=True)
    return (x - mean) / (x.std(dims, keepdim=True, unbiased=unbiased) + 1e-7)


@pytest.mark.parametrize(
    ("dims", "unbiased", "words"),
    [
        ((1,), False, "it normalizes by each row's own mean and deviation"),
        ((0, 1), True, "it normalizes by the batch's own mean and deviation"),
        ((2,), True, "it normalizes by each step's own mean and deviation"),
        ((1, 2), False, "it normalizes by all features' of each row own mean and deviation"),
        ((0, 1, 2), False, "it normalizes by the whole batch's own mean and deviation"),
    ],
)
def test_statistics_of_the_input_are_named(dims: Any, unbiased: bool, words: str) -> None:
    layer = ("Normalization", {"mean": [0.3, -0.2, 0.5, 0.7, 0.1], "variance": [2, 3, 1, 0.5, 0.7]})
    (finding,) = compare_with(
        chain_of(layer, GRU), layer_0=lambda _, x: _scaled(x, dims, unbiased=unbiased)
    ).findings
    assert finding.layer == "layer_0"
    assert finding.words.startswith(words)
    assert ("n - 1" in finding.words) == unbiased


@pytest.mark.parametrize(
    ("shape", "join"),
    [
        ((3, 10), lambda x: torch.cat(x.chunk(2, 1), 2)),
        ((12, 2), lambda x: torch.cat(x[..., :4].chunk(2, 2), 1)),
    ],
    ids=["joined", "apart"],
)
def test_steps_that_are_joined_far_apart_are_named(
    shape: tuple[int, int], join: Callable[[Tensor], Tensor]
) -> None:
    inputs = [("x", "float", (6, shape[0] * shape[1] // 6))]
    spec = chain_of(("Reshape", {"target_shape": shape}), GRU, inputs=inputs)
    (finding,) = compare_with(spec, layer_0=lambda _, x: join(x)).findings
    assert finding.layer == "layer_0"
    assert "far apart" in finding.words


def test_windows_that_run_on_over_several_rows_are_named() -> None:
    each = [("TimeDistributed", {"layer": one}) for one in (CONV, ("GlobalMaxPooling1D", {}))]
    spec = chain_of(*each, GRU, inputs=[("x", "float", (5, 7, 2))])

    def wrong(right: Any, x: Tensor) -> Any:
        return right(x.flatten(1, 2)[:, None]).unflatten(2, x.shape[1:3])[:, 0]

    (finding,) = compare_with(spec, layer_0=wrong).findings
    assert finding.layer == "layer_0"
    assert finding.words.startswith("its windows run on from one step of TimeDistributed")


@pytest.mark.parametrize("first", [0, 1])
def test_states_among_other_inputs_that_are_viewed_are_named(first: int) -> None:
    given: list[Any] = ["f", "b"]
    given.insert(2 * (1 - first), "s")
    both = ("Bidirectional", {"layer": ("GRU", {"units": 3, "return_state": True})})
    spec = model_of(
        (["q", "f", "b"], both, "x"),
        ("y", ("Concatenate", {}), given),
        ("z", ("Dense", {"units": 2}), "y"),
        inputs=[*FLOATS, ("s", "float", (2,))],
    )

    def wrong(_: Any, inputs: Any) -> Tensor:
        states = torch.stack([one for one in inputs if one.shape[1] == 3])
        other = next(one for one in inputs if one.shape[1] == 2)
        viewed = states.reshape(-1, 6)
        return torch.cat([other, viewed] if first else [viewed, other], 1)

    (finding,) = compare_with(spec, layer_1=wrong).findings
    assert finding.layer == "layer_1"
    assert f"inputs {first + 1} and {first + 2} lie as (2, B, H)" in finding.words


class _Gated(nn.Module):
    """A port whose sigmoid is at the other factor of a product."""

    def __init__(self, right: Any, other: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.rnn = right.layer_0, right.layer_1, right.layer_3
        self.other = other

    def forward(self, x: Tensor) -> Any:
        return self.rnn(torch.sigmoid(self.first(x)) * self.other(self.second(x)))


@pytest.mark.parametrize("other", ["linear", "tanh"])
def test_exchanged_activations_of_a_gated_product_are_named(other: str) -> None:
    spec = model_of(
        ("a", ("Dense", {"units": 3, "activation": other}), "x"),
        ("g", ("Dense", {"units": 3, "activation": "sigmoid"}), "x"),
        ("m", ("Multiply", {}), ["a", "g"]),
        ("y", ("GRU", {"units": 2}), "m"),
    )
    apply = torch.tanh if other == "tanh" else nn.Identity()
    (finding,) = compare_spec(spec, _Gated(build_model(spec), apply)).findings
    assert finding.layer in ("layer_0", "layer_1")
    assert "are exchanged" in finding.words


@pytest.mark.parametrize(
    ("layer", "change", "words"),
    [
        (("Dense", {"units": 3}), lambda x: x - _later(x), "its difference from the step before"),
        (("Dense", {"units": 3}), lambda x: (x + _later(x)) / 2, "the mean of each step and"),
        (("GlobalAveragePooling1D", {}), lambda x: x[:, 3:], "the last 4 of 7 steps alone"),
    ],
)
def test_changed_steps_are_named(
    layer: Any, change: Callable[[Tensor], Tensor], words: str
) -> None:
    spec = chain_of(("Dense", {"units": 4}), layer, ("Dense", {"units": 2}))
    (finding,) = compare_with(spec, layer_1=lambda right, x: right(change(x))).findings
    assert finding.layer == "layer_1"
    assert words in finding.words


def _later(x: Tensor) -> Tensor:
    return torch.cat([x[:, :1] * 0, x[:, :-1]], 1)


@pytest.mark.parametrize("row", [1, 3, 12])
@pytest.mark.parametrize("masked", [False, True])
def test_a_row_of_zeros_is_named_whichever_it_is(row: int, masked: bool) -> None:
    layer = ("Embedding", {"input_dim": 13, "output_dim": 4, "mask_zero": masked})

    def wrong(right: Any, ids: Tensor) -> Tensor:
        table: Tensor = right.weight.clone()
        table[row] = 0
        found: Tensor = table[ids.long()]
        return found

    report = compare_with(chain_of(layer, GRU, inputs=IDS), layer_0=wrong)
    finding = only_finding(report, "layer_0", "padding row")
    assert finding.words.startswith(f"row {row} is zero")


@pytest.mark.parametrize("mask_zero", [False, True])
@pytest.mark.parametrize("rows", [2, 5, 13, 300])
def test_all_ids_for_which_there_is_room_are_tried(rows: int, mask_zero: bool) -> None:
    layer = ("Embedding", {"input_dim": rows, "output_dim": 4, "mask_zero": mask_zero})
    (ids,) = batches(chain_of(layer, GRU, inputs=IDS), None)[0].arrays
    wanted = {*range(int(mask_zero), min(rows, 4)), rows - 1} if rows > 13 else {*range(rows)}
    assert wanted - {*ids.reshape(-1)} <= ({0} if mask_zero else set())


def test_attention_with_exchanged_indices_is_named() -> None:
    spec = model_of(
        ("d", ("Dense", {"units": 5}), "x"), ("a", ("Attention", {}), ["x", "d"]), ("y", GRU, "a")
    )

    def told_of(change: Callable[[Tensor], Tensor]) -> str:
        def attend(_: Any, inputs: Any, **__: Any) -> Tensor:
            return change(inputs[0] @ inputs[1].transpose(1, 2)) @ inputs[1]

        (finding,) = compare_with(spec, layer_1=attend).findings
        assert finding.layer == "layer_1"
        return finding.words

    assert "its shares are transposed" in told_of(lambda s: s.softmax(-1).transpose(1, 2))
    later = torch.ones(7, 7).tril(-1).bool()
    assert "later ones alone" in told_of(lambda s: s.masked_fill(later, -1e9).softmax(-1))


def test_states_that_are_not_taken_as_they_are_are_named() -> None:
    whole = ("GRU", {"units": 3, "return_sequences": True})
    spec = model_of(
        ("h", ("Dense", {"units": 3}), "s"),
        ("y", whole, "x", {"initial_state": "@h"}),
        ("z", whole, "y"),
        ("o", ("Dense", {"units": 2}), "z"),
        inputs=[*FLOATS, ("s", "float", (4,))],
    )

    def start(right: Any, x: Tensor, initial_state: Any = None, **_: Any) -> Any:
        state = initial_state[0] if isinstance(initial_state, list | tuple) else initial_state
        return right(x, initial_state=[torch.tanh(state)])

    finding = only_finding(compare_with(spec, layer_1=start), "layer_1", "initial state")
    assert finding.words == "tanh is applied to its initial states"

    def alone(right: Any, x: Tensor, **_: Any) -> Tensor:
        return torch.cat([right(one) for one in x.chunk(x.shape[1], 1)], 1)

    only_finding(compare_with(spec, layer_2=alone), "layer_2", "state not carried")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_cosine_of_one_normalized_input_is_named(number: int, normalize: bool) -> None:
    dot = ("Dot", {"axes": (2, 2), "normalize": normalize})
    spec = model_of(("d", ("Dense", {"units": 5}), "x"), ("p", dot, ["x", "d"]), ("y", GRU, "p"))

    def wrong(_: Any, inputs: Any) -> Tensor:
        one, other = (
            x / x.norm(dim=2, keepdim=True) if place == number else x
            for place, x in enumerate(inputs)
        )
        y: Tensor = one @ other.transpose(1, 2)
        return y

    (finding,) = compare_with(spec, layer_1=wrong).findings
    assert finding.layer == "layer_1"
    assert f"its {('first', 'second')[number]} input alone" in finding.words


def test_lengths_that_are_one_too_small_are_named() -> None:
    """They are an assumption about the side of the padding, too."""
    layer = ("Embedding", {"input_dim": 13, "output_dim": 4, "mask_zero": True})
    both = ("Bidirectional", {"layer": ("GRU", {"units": 3, "return_sequences": True})})

    def shortened(right: Any, x: Tensor, mask: Tensor) -> Tensor:
        valid = torch.arange(x.shape[1]) < mask.sum(1, keepdim=True) - 1
        y: Tensor = right(x, mask=valid)
        return y

    report = compare_with(chain_of(layer, both, GRU, inputs=IDS), layer_1=shortened)
    first, *others = report.findings
    assert (first.layer, first.kind) == ("layer_1", "mask rule")
    assert "lengths are one too small" in first.words
    assert {one.kind for one in others} == {"padding side"}
