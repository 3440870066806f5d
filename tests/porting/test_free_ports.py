"""Ports in other styles (packed, cells in a loop, einsum): mistakes are named all the same."""

from __future__ import annotations

from typing import Any

import pytest
from free_ports import Cells, PackedLast, Tagger
from test_hand_ports import BI, BI1, Row, check, identify, show_ports

import keras2torch_birnn as k2t

ONE: tuple[Row, ...] = (
    (Tagger, ("lstm f and g exchanged",), ((BI, "gate order"),)),
    (Tagger, ("lstm forget bias again",), ((BI, "forget bias"),)),
    (Tagger, ("lstm no tanh of c",), ((BI, "activation"),)),
    (Tagger, ("lstm mask kept from c",), ((BI, "held state"),)),
    (Tagger, ("gru other reset",), ((BI1, "reset"),)),
    (Tagger, ("gru 1 - z",), ((BI1, "z"),)),
    (Tagger, ("id 3 is left out, too",), (("embedding", "mask rule"),)),
    (Tagger, ("lstm flips padding, too",), ((BI, "reversed padding"),)),
    (Tagger, ("lstm flips padding, too, unmasked",), ((BI, "mask missing"),)),
    (Tagger, ("gru is turned with padding",), ((BI1, "reversed padding"),)),
    (Tagger, ("units take turns",), ((BI, "merge order"),)),
    (Tagger, ("subtract backward",), ((BI1, "merge mode"),)),
    (Tagger, ("forward half alone",), ((BI1, "half left out"),)),
    (Tagger, ("maximum",), ((BI1, "merge mode"),)),
    (Tagger, ("no bias at the end",), (("dense", "bias missing"),)),
    (Tagger, ("lstm c not carried",), ((BI, "gate left out"),)),
    (Tagger, ("lstm h not carried",), ((BI, "state not carried"),)),
    (Tagger, ("gru no reset gate",), ((BI1, "gate left out"),)),
    (Tagger, ("gru bias of n twice",), ((BI1, "gate's bias"),)),
    (Tagger, ("lstm coupled",), ((BI, "other gate"),)),
    (Tagger, ("gru z for r",), ((BI1, "other gate"),)),
    (Tagger, ("one value",), ((BI1, "weights: some values"),)),
    (Tagger, ("recurrent kernels alike",), ((BI, "halves alike"),)),
    (PackedLast, ("back c",), ((BI, "last state"),)),
    (PackedLast, ("flips padding",), ((BI, "reversed padding"),)),
    (PackedLast, ("h of the forward half twice",), ((BI, "half taken twice"),)),
    (PackedLast, ("id 5 is left out, too",), (("embedding", "mask rule"),)),
    (PackedLast, ("difference",), ((BI, "merge mode"),)),
    (PackedLast, ("mean",), ((BI, "merge mode"),)),
    (PackedLast, ("gates ifog",), ((BI, "gate order"),)),
    (PackedLast, ("ahead [:, -1]",), ((BI, "last state"),)),
    (Cells, ("not turned",), ((BI, "direction"),)),
    (Cells, ("subtract",), ((BI, "merge mode"),)),
    (Cells, ("sum",), ((BI, "merge mode"),)),
    (Cells, ("biases joined",), ((BI, "biases joined"),)),
    (Cells, ("recurrent bias missing",), ((BI, "missing"),)),
)
TWO: tuple[Row, ...] = (
    (
        Tagger,
        ("subtract", "no bias at the end"),
        ((BI1, "merge mode"), ("dense", "bias missing")),
    ),
    (Tagger, ("gru 1 - z", "id 3 is left out, too"), ((BI1, "z"), ("embedding", "mask rule"))),
    (Tagger, ("lstm f and g exchanged", "subtract"), ((BI, "gate order"), (BI1, "merge mode"))),
    (
        Tagger,
        ("gru flips padding, too", "lstm forget bias again"),
        ((BI, "forget bias"), (BI1, "reversed padding")),
    ),
    (Cells, ("subtract", "gates zrn"), ((BI, "merge mode"), (BI, "gate order"))),
    (Cells, ("subtract", "not turned"), ((BI, "merge mode"), (BI, "direction"))),
    (Tagger, ("subtract", "gru 1 - z"), ((BI1, "merge mode"), (BI1, "z"))),
    (Tagger, ("subtract backward", "gru other reset"), ((BI1, "merge mode"), (BI1, "reset"))),
    (
        Tagger,
        ("maximum", "gru is turned with padding"),
        ((BI1, "merge mode"), (BI1, "reversed padding")),
    ),
    (PackedLast, ("difference", "back c"), ((BI, "merge mode"), (BI, "last state"))),
)


@pytest.mark.sampled(show_ports((*ONE, *TWO)))
@pytest.mark.parametrize("row", (*ONE, *TWO), ids=identify)
def test_a_mistake_in_any_style_is_named(row: Row) -> None:
    check(row)


@pytest.mark.parametrize("kind", (Tagger, PackedLast, Cells), ids=lambda kind: kind.__name__)
def test_a_right_port_in_any_style_is_equal(kind: Any) -> None:
    report = k2t.compare(kind.source, kind())
    assert report.ok, "\n".join(report.lines())
    assert report.findings == ()


@pytest.mark.every(5)
@pytest.mark.parametrize(
    "row",
    [
        (
            Tagger,
            ("padding is id 16",),
            ("embedding", "mask rule", "leaves out id 16, Keras leaves out id 0"),
        ),
        (Tagger, ("mask inverted",), ("embedding", "mask rule", "the other way round")),
        (
            Tagger,
            ("gru flips padding, too",),
            (BI1, "reversed padding", "the reversal of a row includes its padding"),
        ),
        (
            Tagger,
            ("subtract",),
            (BI1, "merge mode", "subtracts the backward half from the forward half"),
        ),
        (
            PackedLast,
            ("first step of the reversed run",),
            (BI, "last state", "the last step that counts of both"),
        ),
    ],
    ids=identify,
)
def test_one_mistake_is_one_finding_in_plain_words(
    row: tuple[Any, tuple[str, ...], tuple[str, str, str]],
) -> None:
    """Also where the first rows alone would have told another one."""
    kind, mistakes, (layer, what, words) = row
    (finding,) = k2t.compare(kind.source, kind(*mistakes)).findings
    assert (finding.layer, finding.kind) == (layer, what)
    assert words in finding.words


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("kind", "mistake"),
    [
        (Cells, "starts with ones"),
        (Cells, "backward one step late"),
    ],
)
def test_no_right_part_is_blamed_for_a_mistake_that_is_not_known(kind: Any, mistake: str) -> None:
    """Zeros, which a port computes for many reasons, are no evidence."""
    report = k2t.compare(kind.source, kind(mistake))
    assert {one.layer for one in report.findings} <= {BI, "the outputs"}, report.lines()
