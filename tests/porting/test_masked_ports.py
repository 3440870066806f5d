"""Mistakes with padding inside of words, with marked features, with two inputs, at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from masked_ports import Letters, Marked, Pair
from test_hand_ports import BI, Row, check, identify, show_ports
from torch import nn

import keras2torch_birnn as k2t
from keras2torch_birnn.porting.observing import observe

ROWS: tuple[Row, ...] = (
    (Letters, ("letters unmasked",), (("time_distributed_2", "mask missing"),)),
    (Letters, ("rows and steps mixed",), (("time_distributed_2", "axes"),)),
    (Letters, ("mask not turned",), (("bidirectional_1", "reversed padding"),)),
    (Pair, ("left twice",), (("embedding#1", "other input"),)),
    (Pair, ("absolute",), (("multiply_1", "other operation"),)),
    (Pair, ("dropout",), (("dense", "random"),)),
    (Pair, ("dropout", "absolute"), (("multiply_1", "other operation"), ("dense", "random"))),
    (Marked, ("any feature",), (("masking", "mask rule"),)),
    (Marked, ("random start",), ((BI, "random"),)),
    (Marked, ("zero where padded",), ((BI, "held state"),)),
)


@pytest.mark.sampled(show_ports(ROWS))
@pytest.mark.parametrize("row", ROWS, ids=identify)
def test_a_mistake_is_named_and_nothing_else(row: Row) -> None:
    check(row)


@pytest.mark.parametrize("kind", (Letters, Pair, Marked), ids=lambda kind: kind.__name__)
def test_a_right_port_is_equal(kind: Any) -> None:
    report = k2t.compare(kind.source, kind())
    assert report.ok, "\n".join(report.lines())
    assert report.findings == ()


def test_masks_that_are_not_joined_are_named_on_data_that_shows_it() -> None:
    """A word without letters: Keras leaves it out."""
    rng = np.random.default_rng(5)
    words, letters = rng.integers(1, 17, (3, 7)), rng.integers(1, 17, (3, 7, 11))
    letters[1, 4], letters[2, 0] = 0, 0
    (finding,) = k2t.compare(
        Letters.source, Letters("words alone"), inputs=[words, letters]
    ).findings
    assert (finding.layer, finding.kind) == ("concatenate_1", "mask rule")
    assert finding.words == "the mask of its first input alone goes on, Keras joins those of all"


class _Random(nn.Module):
    """A module that draws random numbers in every way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.dropout(x, 0.5)
        x = torch.nn.functional.dropout(x, 0.0) + torch.randn(3) + torch.rand_like(x)
        return x + torch.empty(3).normal_()


def test_nothing_is_random_in_a_settled_run() -> None:
    x = np.arange(6.0).reshape(2, 3)
    run = observe(_Random(), [x], torch.float64, 1e-9)
    assert np.array_equal(run.outputs[0], x)
    assert {name for name, _ in run.random} == {"dropout", "randn", "rand_like", "normal_"}
    free = observe(_Random(), [x], torch.float64, 1e-9, settled=False)
    assert not np.array_equal(free.outputs[0], x)


def test_random_numbers_that_change_nothing_are_no_mistake() -> None:
    class Port(Marked):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0 * torch.randn(22)

    assert k2t.compare(Port.source, Port()).ok
