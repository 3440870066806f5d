"""Ports written by hand: right ones are equal, and a mistake is named where it is, nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fixture_files import FIXTURES
from free_ports import Cells, PackedLast, Tagger
from hand_ports import Hard, Norms, Sentiment, SentimentPacked, Speech, Stack, StackApart
from masked_ports import Letters, Marked, Pair
from torch import Tensor, nn
from whole_ports import Attending, Joint, LastStep, Picture, Translation, TranslationByKeras3
from wired_ports import Comments, Connected, Normalized, Residual, Sounds

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
    (
        Speech,
        ("conv relu late",),
        (("conv1d", "activation"), ("batch_normalization_1", "activation")),
    ),
    (Speech, ("conv reversed",), (("conv1d", "direction|reversed"),)),
    (Speech, ("conv same",), (("conv1d", "convolution padding"),)),
    (Speech, ("gates zrn",), ((BI1, "gate order"),)),
    (Speech, ("biases exchanged",), ((BI1, "exchanged"),)),
    (Speech, ("recurrent bias missing",), ((BI1, "missing"),)),
    (Speech, ("biases joined",), ((BI1, "biases joined"),)),
    (Speech, ("layers exchanged",), ((BI1, "layers exchanged"), (BI2, "layers exchanged"))),
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
    (Sentiment, ("mean",), ((BI1, "last state"),)),
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
    (Hard, ("gru slope", "gru z"), (("gru_1", "unexplained"),)),
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

# Ports in other styles (packed, cells in a loop, einsum): mistakes are named all the same.
FREE: tuple[Row, ...] = (
    (Tagger, ("lstm f and g exchanged",), ((BI, "gate order"),)),
    (Tagger, ("lstm forget bias again",), ((BI, "forget bias"),)),
    (Tagger, ("lstm no tanh of c",), ((BI, "activation"),)),
    (Tagger, ("lstm no tanh of g",), ((BI, "activation"),)),
    (Tagger, ("lstm mask kept from c",), ((BI, "unexplained"),)),
    (Tagger, ("gru other reset",), ((BI1, "reset"),)),
    (Tagger, ("gru 1 - z",), ((BI1, "z"),)),
    (Tagger, ("id 3 is left out, too",), ((BI, "unexplained"),)),
    (Tagger, ("lstm flips padding, too",), ((BI, "reversed padding"),)),
    (Tagger, ("lstm flips padding, too, unmasked",), ((BI, "mask missing"),)),
    (Tagger, ("gru is turned with padding",), ((BI1, "reversed padding"),)),
    (Tagger, ("units take turns",), ((BI, "merge order"),)),
    (Tagger, ("forward half alone",), ((BI1, "half left out"),)),
    (Tagger, ("maximum",), ((BI1, "unexplained"),)),
    (Tagger, ("no bias at the end",), (("dense", "bias missing"),)),
    (Tagger, ("lstm c not carried",), ((BI, "unexplained"),)),
    (Tagger, ("one value",), ((BI1, "unexplained"),)),
    (PackedLast, ("back c",), ((BI, "last state"),)),
    (PackedLast, ("flips padding",), ((BI, "reversed padding"),)),
    (PackedLast, ("h of the forward half twice",), ((BI, "half taken twice"),)),
    (PackedLast, ("id 5 is left out, too",), ((BI, "unexplained"),)),
    (PackedLast, ("mean",), ((BI, "merge mode"),)),
    (PackedLast, ("gates ifog",), ((BI, "gate order"),)),
    (PackedLast, ("ahead [:, -1]",), ((BI, "unexplained"),)),
    (Cells, ("not turned",), ((BI, "direction"),)),
    (Cells, ("sum",), ((BI, "merge mode"),)),
    (Cells, ("biases joined",), ((BI, "biases joined"),)),
    (Cells, ("recurrent bias missing",), ((BI, "missing"),)),
    (Tagger, ("gru 1 - z", "id 3 is left out, too"), ((BI, "unexplained"),)),
    (
        Tagger,
        ("gru flips padding, too", "lstm forget bias again"),
        ((BI, "forget bias"), (BI1, "reversed padding")),
    ),
    (Cells, ("sum", "gates zrn"), ((BI, "merge mode"), (BI, "gate order"))),
    (Cells, ("sum", "not turned"), ((BI, "merge mode"), (BI, "direction"))),
    (PackedLast, ("mean", "back c"), ((BI, "merge mode"), (BI, "last state"))),
)
# Ports of whole models: mistakes with states, shapes and connections between the layers.
WHOLE: tuple[Row, ...] = (
    (Translation, ("h and c exchanged",), (("lstm_1", "initial state"),)),
    (Translation, ("no start",), (("lstm_1", "initial state"),)),
    (Translation, ("scaled",), (("dot", "scale"),)),
    # masked steps that nothing that counts reads are told nowhere
    (Translation, ("not turned",), ((BI, "direction"),)),
    (Translation, ("softmax over words",), (("activation", "axis"),)),
    (Translation, ("padding masked",), (("activation", "unexplained"),)),
    (Translation, ("steps repeated",), ((BI, "masked steps"),)),
    # its words have a mask, which it does not read
    (TranslationByKeras3, ("no start",), (("lstm_1", "initial state"),)),
    (TranslationByKeras3, ("h and c exchanged",), (("lstm_1", "initial state"),)),
    (TranslationByKeras3, ("softmax over words",), (("activation", "axis"),)),
    (Picture, ("channels first",), (("reshape", "axes"),)),
    (Picture, ("height and width exchanged",), (("reshape", "axes"),)),
    # not known, and no reason to say that a softmax follows
    (Picture, ("cosine",), (("dense_1", "unexplained"),)),
    # what it reads is right: the steps are masked behind it
    (Attending, ("softmax of words",), (("softmax", "masked steps"),)),
    # all ones, by which a product is as if it were left out
    (Attending, ("softmax of one",), (("softmax", "axis"),)),
    # what is computed and not used is right
    (Attending, ("weights unused",), (("sum", "unexplained"),)),
    (Attending, ("mean",), (("sum", "other operation"),)),
    (Attending, ("no mask",), (("bidirectional", "mask missing"),)),
    (LastStep, ("h_n",), (("tf.__operators__.getitem", "last state"),)),
)
# Mistakes between layers, where nothing is blamed that only looks like one.
WIRED: tuple[Row, ...] = (
    (Residual, ("normalized before",), (("add", "unexplained"),)),
    (Residual, ("no skip",), (("add", "left out"),)),
    # two layers read what is activated, or one of them alone
    (Residual, ("relu between",), ((BI, "activation"),)),
    (Residual, ("relu before the second",), ((BI1, "unexplained"),)),
    (Sounds, ("channels first",), (("reshape", "axes"),)),
    (Sounds, ("average",), (("max_pooling2d", "other operation"),)),
    (Sounds, ("relu first",), (("conv2d", "activation"), ("activation", "activation"))),
    (Sounds, ("kernel turned",), (("conv2d", "axes"),)),
    # two readings give the same numbers at the first layer; what follows tells which it is
    (
        Sounds,
        ("channels first", "forward half twice"),
        (("reshape", "axes"), (BI, "half taken twice"), (BI1, "half taken twice")),
    ),
    # two mistakes in each of two layers
    (
        Sounds,
        ("not turned", "relu between"),
        ((BI, "direction"), (BI, "activation"), (BI1, "direction"), (BI1, "activation")),
    ),
    (Connected, ("second first",), (("concatenate", "order"),)),
    (Connected, ("last step",), (("global_max_pooling1d", "other operation"),)),
    (Residual, ("padding at the end",), ((BI, "padding side"),)),
    (Residual, ("second reads padding backward",), ((BI1, "mask missing"),)),
    (Comments, ("ids too low",), (("embedding", "ids"),)),
    (Comments, ("leaky",), (("conv1d", "activation"),)),
    (
        Comments,
        ("kernel reversed", "sum"),
        (("conv1d", "direction"), ("global_average_pooling1d", "other operation")),
    ),
    (Normalized, ("input added",), (("simple_rnn", "unexplained"),)),
    (Normalized, ("layer norm",), (("batch_normalization", "unexplained"),)),
    # not known, and no reason to blame the layers behind it, nor to forget what is before it
    (Normalized, ("peephole",), (("bidirectional", "unexplained"),)),
    (
        Normalized,
        ("f and g exchanged", "rnn one step late"),
        (("bidirectional", "gate order"), ("simple_rnn", "unexplained")),
    ),
)
# Mistakes with padding inside of words, with marked features, with two inputs, at random.
MASKED: tuple[Row, ...] = (
    (Letters, ("letters unmasked",), (("time_distributed_2", "mask missing"),)),
    (Letters, ("rows and steps mixed",), (("concatenate_1", "unexplained"),)),
    (Letters, ("mask not turned",), (("bidirectional_1", "reversed padding"),)),
    (Pair, ("left twice",), (("embedding#1", "unexplained"),)),
    (Pair, ("absolute",), (("multiply_1", "unexplained"),)),
    # right behind the normalization
    (Pair, ("dropout",), (("batch_normalization", "random"),)),
    (Pair, ("dropout", "absolute"), (("multiply_1", "unexplained"), ("the port", "random"))),
    (Marked, ("any feature",), ((BI, "unexplained"),)),
    (Marked, ("random start",), ((BI, "random"),)),
    (Marked, ("zero where padded",), ((BI, "unexplained"),)),
)
OTHERS = (*FREE, *WHOLE, *WIRED, *MASKED)
RIGHT = (
    *(Stack, StackApart, Hard, Speech, Sentiment, Norms),
    *(Tagger, PackedLast, Cells),
    *(Joint, Translation, TranslationByKeras3, Attending, Picture, LastStep),
    *(Residual, Sounds, Comments, Connected, Normalized),
    *(Letters, Pair, Marked),
)


def identify(row: Row) -> str:
    return f"{row[0].__name__}: {', '.join(row[1])}"


def show(rows: Sequence[Row]) -> dict[Row, list[str]]:
    """Return what ``make test`` must meet: each kind of mistake, in a port that makes no other."""
    return {row: ["a row", *(kind for _, kind in row[2] if len(row[2]) == 1)] for row in rows}


def check(row: Row) -> None:
    kind, mistakes, wanted = row
    port: nn.Module = kind(*mistakes)
    report = k2t.compare(port.source, port)
    lines = "\n".join(report.lines())
    assert not report.ok, lines
    for layer, kinds in wanted:
        found = [one.kind for one in report.findings if one.layer == layer]
        assert any(word in kind for word in kinds.split("|") for kind in found), lines
    assert {one.layer for one in report.findings} == {layer for layer, _ in wanted}, lines


@pytest.mark.sampled(show(ONE))
@pytest.mark.parametrize("row", ONE, ids=identify)
def test_a_mistake_is_named_where_it_is(row: Row) -> None:
    check(row)


@pytest.mark.sampled(show(TWO))
@pytest.mark.parametrize("row", TWO, ids=identify)
def test_two_mistakes_are_both_named(row: Row) -> None:
    check(row)


@pytest.mark.sampled({row: [row[0].__name__] for row in OTHERS})
@pytest.mark.parametrize("row", OTHERS, ids=identify)
def test_a_mistake_of_any_other_port_is_named_and_nothing_else(row: Row) -> None:
    check(row)


@pytest.mark.parametrize(
    ("kind", "mistake", "words"),
    [
        (Stack, "gates igfo", "gates in order igfo instead of ifgo"),
        (Speech, "gates zrn", "gates in order zrn instead of rzn"),
        (Hard, "gru hh wrong", "gates in order zrn instead of rzn (recurrent kernel)"),
    ],
)
def test_a_wrong_order_of_gates_is_told_by_their_letters(
    kind: Any, mistake: str, words: str
) -> None:
    (finding,) = k2t.compare(kind.source, kind(mistake)).findings
    assert finding.words == words


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
    assert (finding.layer, finding.kind) == ("embedding", "padding side")
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


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("kind", "mistake"), [(Cells, "starts with ones"), (Cells, "backward one step late")]
)
def test_no_right_part_is_blamed_for_a_mistake_that_is_not_known(kind: Any, mistake: str) -> None:
    """Zeros, which a port computes for many reasons, are no evidence."""
    report = k2t.compare(kind.source, kind(mistake))
    assert {one.layer for one in report.findings} <= {BI, "the outputs"}, report.lines()


class OneTooLow(nn.Module):
    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, ids: Tensor) -> Any:
        return self.embedding((ids - 1).clamp(min=0))


def test_ids_that_are_one_too_low_are_no_activation() -> None:
    """Cut to a whole number, the silu of an id is the id before it."""
    file = FIXTURES / "tf.keras-2.15.0" / "mask_stack_bi_dense.h5"
    port: Any = k2t.convert(file)
    port.embedding = OneTooLow(port.embedding)
    (finding,) = k2t.compare(file, port).findings
    assert finding.layer == "embedding"
    assert finding.words == "it differs here; perhaps its ids are one too low"


def test_what_makes_a_mask_is_not_told_among_what_a_layer_reads() -> None:
    """Keras 3 writes the comparison of ids as a call of its own."""
    (finding,) = k2t.compare(Attending.source, Attending("cubes")).findings
    assert finding.words == "right up to dense; it differs here, no usual mistake explains how"


def test_a_softmax_of_one_value_is_told_by_its_axis() -> None:
    (finding,) = k2t.compare(Attending.source, Attending("softmax of one")).findings
    assert finding.words == "softmax over the last axis, Keras takes axis 1 (the steps)"


def test_what_a_layer_reads_suggests_no_mistake_of_it() -> None:
    """Scores that a softmax reads are no softmax that was left out."""
    (finding,) = k2t.compare(Translation.source, Translation("padding masked")).findings
    assert finding.words == "right up to dot; it differs here, no usual mistake explains how"
