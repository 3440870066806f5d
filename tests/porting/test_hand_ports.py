"""Ports written by hand: right ones are equal, and a mistake is named where it is, nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hand_ports import Hard, Norms, Sentiment, SentimentPacked, Speech, Stack, StackApart
from torch import nn

import keras2torch_birnn as k2t

# The port, its mistakes, and for each what must be found: the layer, and the kind of mistake.
Row = tuple[Any, tuple[str, ...], tuple[tuple[str, str], ...]]
BI, BI1, BI2 = "bidirectional", "bidirectional_1", "bidirectional_2"
ONE: tuple[Row, ...] = (
    (Stack, ("gates igfo",), ((BI, "gate order"),)),
    (Stack, ("gates ifog", "only hh"), ((BI, "gate order"),)),
    (Stack, ("directions exchanged",), ((BI, "directions exchanged"),)),
    (Stack, ("halves alike",), ((BI, "exchanged"),)),
    (Stack, ("bias missing",), ((BI, "missing"),)),
    (Stack, ("backward bias missing",), ((BI, "missing"),)),
    (Stack, ("bias doubled",), ((BI, "doubled"),)),
    (Stack, ("reshaped",), ((BI, "reshaped"),)),
    (Stack, ("rnn recurrent not transposed",), ((BI1, "not transposed"),)),
    (Stack, ("batch_first missing",), ((BI, "batch_first"),)),
    (Stack, ("rnn relu",), ((BI1, "activation"),)),
    (Stack, ("mid bias missing",), (("dense", "missing"),)),
    (Stack, ("mid not loaded",), (("dense", "other values"),)),
    (Stack, ("mid relu",), (("dense", "activation"),)),
    (Stack, ("last out[:, -1]",), ((BI2, "last state"),)),
    (Stack, ("last out[:, 0]",), ((BI2, "last state"),)),
    (Stack, ("merge ave",), ((BI2, "merge mode"),)),
    (Stack, ("merge mul",), ((BI2, "merge mode"),)),
    (Stack, ("softmax at the end",), (("dense_1", "activation"),)),
    (Hard, ("lstm slope",), ((BI1, "activation"),)),
    (Hard, ("lstm sigmoid",), ((BI1, "activation"),)),
    (Hard, ("lstm ifog",), ((BI1, "gate order"),)),
    (Hard, ("lstm bias doubled",), ((BI1, "bias doubled"),)),
    (Hard, ("not turned",), ((BI1, "direction"),)),
    (Hard, ("backward first",), ((BI1, "merge order"),)),
    (Hard, ("gru z",), (("gru_1", "z"),)),
    (Hard, ("gru reset after",), (("gru_1", "reset"),)),
    (Hard, ("gru slope",), (("gru_1", "activation"),)),
    (Hard, ("gru relu",), (("gru_1", "activation"),)),
    (Hard, ("gru hh wrong",), (("gru_1", "gate order"),)),
    (Hard, ("dense slope",), (("dense_1", "activation"),)),
    (Hard, ("dense bias",), (("dense_1", "bias missing"),)),
    (Speech, ("eps 0",), (("batch_normalization", "epsilon"),)),
    (Speech, ("gamma and beta 2",), (("batch_normalization_2", "exchanged"),)),
    (Speech, ("no statistics 1",), (("batch_normalization_1", "not loaded|missing"),)),
    (Speech, ("conv relu missing",), (("conv1d", "activation"),)),
    (Speech, ("conv relu late",), (("conv1d", "order"),)),
    (Speech, ("conv reversed",), (("conv1d", "direction|reversed"),)),
    (Speech, ("conv same",), (("conv1d", "convolution padding"),)),
    (Speech, ("gates zrn",), ((BI1, "gate order"),)),
    (Speech, ("biases exchanged",), ((BI1, "exchanged"),)),
    (Speech, ("recurrent bias missing",), ((BI1, "missing"),)),
    (Speech, ("biases joined",), ((BI1, "biases joined"),)),
    (Speech, ("layers exchanged",), ((BI1, "layers exchanged"),)),
    (Speech, ("merge ave",), ((BI1, "merge mode"),)),
    (Speech, ("norm left out",), (("batch_normalization_2", "left out"),)),
    (Speech, ("log softmax",), (("activation", "activation"),)),
    (Speech, ("softmax axis",), (("activation", "axis"),)),
    (Sentiment, ("no mask",), (("embedding", "mask missing"),)),
    (Sentiment, ("no mask in the second",), ((BI1, "mask missing"),)),
    (Sentiment, ("padding at the end",), (("bidirectional", "padding side"),)),
    (Sentiment, ("cell states",), ((BI1, "last state"),)),
    (Sentiment, ("view",), ((BI1, "last state"),)),
    (Sentiment, ("last step of both",), ((BI1, "last state"),)),
    (Sentiment, ("last step of the array",), ((BI1, "last state"),)),
    (Sentiment, ("relu missing",), (("dense", "activation"),)),
    (Sentiment, ("sigmoid missing",), (("dense_1", "activation"),)),
    (Norms, ("eps layer_normalization_1",), (("layer_normalization_1", "epsilon"),)),
)
TWO: tuple[Row, ...] = (
    (Stack, ("gates igfo", "last out[:, -1]"), ((BI, "gate order"), (BI2, "last state"))),
    (Stack, ("bias doubled", "merge ave"), ((BI, "doubled"), (BI2, "merge mode"))),
    (Stack, ("rnn relu", "mid bias missing"), ((BI1, "activation"), ("dense", "missing"))),
    (Stack, ("merge ave", "last out[:, -1]"), ((BI2, "merge mode"), (BI2, "last state"))),
    (Hard, ("lstm slope", "gru z"), ((BI1, "activation"), ("gru_1", "z"))),
    (Hard, ("not turned", "gru reset after"), ((BI1, "direction"), ("gru_1", "reset"))),
    (Hard, ("gru slope", "gru z"), (("gru_1", "activation"), ("gru_1", "z"))),
    (Speech, ("eps 0", "merge ave"), (("batch_normalization", "epsilon"), (BI1, "merge mode"))),
    (Speech, ("gates zrn", "softmax axis"), ((BI1, "gate order"), ("activation", "axis"))),
    (
        Sentiment,
        ("no mask", "relu missing"),
        (("embedding", "mask missing"), ("dense", "activation")),
    ),
    (Sentiment, ("view", "sigmoid missing"), ((BI1, "last state"), ("dense_1", "activation"))),
    (
        Norms,
        ("eps layer_normalization_1", "bias missing"),
        ((BI, "missing"), ("layer_normalization_1", "epsilon")),
    ),
)


def identify(row: Row) -> str:
    return f"{row[0].__name__}: {', '.join(row[1])}"


def show(rows: Sequence[Row]) -> dict[Row, list[str]]:
    """Return what ``make test`` must meet: each kind of mistake, in a port that makes no other."""
    return {row: ["a row", *(kind for _, kind in row[2] if len(row[2]) == 1)] for row in rows}


def show_ports(rows: Sequence[Row]) -> dict[Row, list[str]]:
    """Return what ``make test`` must meet of other ports: one mistake in each of them."""
    return {row: [row[0].__name__] for row in rows}


def check(row: Row) -> None:
    kind, mistakes, wanted = row
    port: nn.Module = kind(*mistakes)
    report = k2t.compare(port.source, port)
    found = [(one.layer, one.kind) for one in report.findings]
    told = "\n".join(report.lines())
    assert not report.ok, told
    for layer, kinds in wanted:
        assert any(
            where == layer and any(word in what for word in kinds.split("|"))
            for where, what in found
        ), told
    assert {where for where, _ in found} == {layer for layer, _ in wanted}, told


def test_a_layer_that_the_port_computed_is_not_blamed_for_a_later_one() -> None:
    """Ids that are one too low would explain the mask, but the port looked up the right ones."""
    port = Sentiment("id 1 is padding, too")
    report = k2t.compare(port.source, port)
    assert {(one.layer, one.kind) for one in report.findings} == {("embedding", "mask rule")}


@pytest.mark.sampled(show(ONE))
@pytest.mark.parametrize("row", ONE, ids=identify)
def test_a_mistake_is_named_where_it_is(row: Row) -> None:
    check(row)


@pytest.mark.sampled(show(TWO))
@pytest.mark.parametrize("row", TWO, ids=identify)
def test_two_mistakes_are_both_named(row: Row) -> None:
    check(row)


@pytest.mark.parametrize(
    ("kind", "mistake", "words"),
    [
        (Stack, "gates igfo", "gates in order igfo instead of ifgo"),
        (Speech, "gates zrn", "gates in order zrn instead of rzn"),
        (Hard, "gru hh wrong", "recurrent kernel: gates in order zrn instead of rzn"),
    ],
)
def test_a_wrong_order_of_gates_is_told_by_their_letters(
    kind: Any, mistake: str, words: str
) -> None:
    (finding,) = k2t.compare(kind.source, kind(mistake)).findings
    assert finding.words == words


RIGHT = (Stack, StackApart, Hard, Speech, Sentiment, Norms)


@pytest.mark.parametrize("kind", RIGHT, ids=lambda kind: kind.__name__)
def test_a_right_port_is_equal(kind: Any) -> None:
    report = k2t.compare(kind.source, kind())
    assert report.ok, "\n".join(report.lines())
    assert report.findings == ()
    assert report.max_abs_error < 1e-12


def test_a_right_port_is_equal_when_its_biases_are_split() -> None:
    assert k2t.compare(Stack.source, Stack("bias split")).ok


def test_a_port_by_packed_sequences_is_right_for_padding_at_the_end_alone() -> None:
    report = k2t.compare(SentimentPacked.source, SentimentPacked())
    (finding,) = report.findings
    assert (finding.layer, finding.kind) == ("bidirectional", "padding side")
    assert finding.rows == "rows padded in front"
    assert not report.ok
    assert list(report.lines())[-1] == (
        "DIFFERENT on rows padded in front alone, equal on full rows, rows padded at the end"
    )
    rng = np.random.default_rng(5)
    ids = rng.integers(1, 11, (5, 7))
    for row, length in enumerate((7, 3, 5, 1, 2)):
        ids[row, length:] = 0
    assert k2t.compare(SentimentPacked.source, SentimentPacked(), inputs=[ids]).ok
