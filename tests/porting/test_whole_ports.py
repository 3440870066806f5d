"""Ports of whole models: mistakes with states, shapes and connections between the layers."""

from __future__ import annotations

from typing import Any

import pytest
from test_hand_ports import Row, check, identify, show_ports
from whole_ports import Attending, Joint, LastStep, Picture, Translation

import keras2torch_birnn as k2t

ROWS: tuple[Row, ...] = (
    (Translation, ("h and c exchanged",), (("lstm_1", "initial state"),)),
    (Translation, ("no start",), (("lstm_1", "initial state"),)),
    (Translation, ("scaled",), (("dot", "extra"),)),
    (Translation, ("steps repeated",), (("bidirectional", "masked steps"),)),
    (Picture, ("channels first",), (("reshape", "axes"),)),
    (Picture, ("height and width exchanged",), (("reshape", "axes"),)),
    # not known, and no reason to say that a softmax follows
    (Picture, ("cosine",), (("dense_1", "unexplained"),)),
    (Attending, ("softmax of words",), (("softmax", "mask rule"),)),
    (Attending, ("mean",), (("sum", "other operation"),)),
    (Attending, ("no mask",), (("bidirectional", "mask missing"),)),
    (LastStep, ("h_n",), (("tf.__operators__.getitem", "last state"),)),
)


@pytest.mark.sampled(show_ports(ROWS))
@pytest.mark.parametrize("row", ROWS, ids=identify)
def test_a_mistake_between_layers_is_named(row: Row) -> None:
    check(row)


@pytest.mark.parametrize(
    "kind", (Joint, Translation, Attending, Picture, LastStep), ids=lambda kind: kind.__name__
)
def test_a_right_port_of_a_whole_model_is_equal(kind: Any) -> None:
    report = k2t.compare(kind.source, kind())
    assert report.ok, "\n".join(report.lines())
    assert report.findings == ()


def test_another_input_is_told_by_the_number_of_the_output() -> None:
    (finding,) = k2t.compare(Joint.source, Joint("c of the backward half")).findings
    assert (finding.layer, finding.kind) == ("concatenate", "other input")
    assert finding.words == (
        "its input 2 is the output 5 of bidirectional, Keras has the output 4 of bidirectional"
    )
