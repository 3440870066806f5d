"""Ports of a residual block, and of layers that keep states: right but for one or two modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from specs import FIXTURES
from torch import Tensor, nn
from wrong_ports import compare_with, only_finding, port_of, told, torchs_lstm

import keras2torch_birnn as k2t

RESIDUAL = FIXTURES / "keras-3.0.5/arch_residual.keras"
STREAM = FIXTURES / "tf.keras-2.15.0/stateful_plain.h5"
NORM = "layer_normalization"


def normalize(x: Tensor, norm: Any, eps: float) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, eps)


def test_a_norm_of_the_branch_alone_is_named() -> None:
    """``x + LN(f(x))`` where Keras has ``LN(x + f(x))``."""
    norm: Any = k2t.convert(RESIDUAL).get_submodule(NORM).double()
    report = compare_with(
        RESIDUAL,
        add=lambda _, pair: pair[0] + normalize(pair[1], norm, norm.eps),
        **{NORM: lambda _, x: x},
    )
    finding = only_finding(report, NORM, "order")
    assert finding.words.startswith("it is applied to the output of dropout alone, before add")


@pytest.mark.thorough
def test_a_norm_of_the_branchs_input_is_named() -> None:
    """``x + f(LN(x))`` where Keras has ``LN(x + f(x))``."""
    norm: Any = k2t.convert(RESIDUAL).get_submodule(NORM).double()
    report = compare_with(
        RESIDUAL,
        bidirectional=lambda right, x, mask: right(normalize(x, norm, norm.eps), mask=mask),
        **{NORM: lambda _, x: x},
    )
    finding = only_finding(report, NORM, "order")
    assert "it is applied to the input of bidirectional" in finding.words


@pytest.mark.thorough
def test_a_missing_skip_and_another_epsilon_are_both_named() -> None:
    report = compare_with(
        RESIDUAL, add=lambda _, pair: pair[1], **{NORM: lambda right, x: normalize(x, right, 1e-1)}
    )
    found = [("add", "left out"), (NORM, "epsilon")]
    assert told(report) == found, "\n".join(report.lines())


def test_lengths_that_are_too_small_are_named_where_keras_masks() -> None:
    """The file has an operation that makes the mask; the user knows the Embedding."""

    def shorter(right: Any, x: Tensor, mask: Tensor) -> Tensor:
        steps = torch.arange(mask.shape[1])
        last = torch.where(mask, steps, -1).amax(1, keepdim=True)
        return right(x, mask=mask & (steps != last))

    report = compare_with(RESIDUAL, bidirectional=shorter)
    finding = only_finding(report, "embedding", "mask rule")
    assert "leaves out the last step that counts" in finding.words


def test_exchanged_weights_of_a_norm_are_called_by_keras_names() -> None:
    port = k2t.convert(RESIDUAL)
    norm: Any = port.get_submodule(NORM)
    norm.weight, norm.bias = norm.bias, norm.weight
    (finding,) = k2t.compare(RESIDUAL, port).findings
    assert (finding.layer, finding.words) == (NORM, "gamma and beta are exchanged")


def read_row_by_row(right: Any, x: Tensor) -> Tensor:
    """Start each row with the last states of the one before it."""
    lstm = torchs_lstm(right, x)
    states, rows = None, []
    for row in x.split(1):
        y, states = lstm(row, states)
        rows.append(y)
    return torch.cat(rows)


def test_states_that_are_kept_from_row_to_row_are_named() -> None:
    source = FIXTURES / "tf.keras-2.15.0/bi_lstm_concat_seq.h5"
    (finding,) = compare_with(source, bidirectional=read_row_by_row).findings
    assert finding.kind == "kept state"
    assert finding.words.startswith("its states are kept from row to row of the batch")


class Streaming(nn.Module):
    """A port of a stateful model whose LSTM carries some of its states."""

    def __init__(self, *carried: int) -> None:
        super().__init__()
        self.port = port_of(STREAM, lstm=self.read)
        self.carried, self.kept = carried, [torch.zeros(1, 2, 5) for _ in range(2)]

    def read(self, right: Any, x: Tensor) -> Tensor:
        y, states = torchs_lstm(right, x)(x, [state.to(x) for state in self.kept])
        for number in self.carried:
            self.kept[number] = states[number].detach()
        return y

    def forward(self, x: Tensor) -> Any:
        return self.port(x)


def test_a_port_that_carries_both_states_of_an_lstm_is_right() -> None:
    report = k2t.compare(STREAM, Streaming(0, 1))
    assert report.ok, "\n".join(report.lines())


@pytest.mark.parametrize(
    ("number", "words"), [(0, "its h alone is kept"), (1, "its cell state c alone is kept")]
)
def test_one_state_of_an_lstm_that_is_not_carried_is_named(number: int, words: str) -> None:
    finding = only_finding(k2t.compare(STREAM, Streaming(number)), "lstm", "kept state")
    assert finding.words.startswith(words)
