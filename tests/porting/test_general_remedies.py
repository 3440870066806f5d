"""Rules of the diagnosis that hold for every port: what counts as evidence, what is told."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hand_ports import Sentiment, SentimentPacked
from torch import Tensor

import keras2torch_birnn as k2t
from keras2torch_birnn.porting.general_changes import _standardized
from keras2torch_birnn.porting.recurrent_changes import _without_bias


class _NanOnEmpty(Sentiment):
    """A right port, but for rows without a word."""

    def forward(self, ids: Tensor) -> Tensor:
        empty = (ids == 0).all(dim=1, keepdim=True)
        return torch.where(empty, torch.nan, super().forward(ids))


class _Sorted(SentimentPacked):
    """Rows sorted by their lengths, and not put back."""

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        order = torch.sort(lengths, descending=True, stable=True).indices
        return super().forward(ids[order], lengths[order])


def test_nan_in_a_row_of_padding_alone_is_told_where_it_begins() -> None:
    report = k2t.compare(_NanOnEmpty.source, _NanOnEmpty())
    (finding,) = report.findings
    assert not report.ok
    assert (finding.layer, finding.kind) == ("dense_1", "NaN")
    assert finding.rows == "rows of padding alone"
    assert finding.words == "gives NaN first"


def test_rows_that_stay_sorted_are_named_at_the_layer_that_is_packed() -> None:
    report = k2t.compare(_Sorted.source, _Sorted())
    assert not report.ok
    assert next((one.layer, one.kind) for one in report.findings) == ("bidirectional", "rows")
    assert {one.kind for one in report.findings} <= {"rows", "padding side"}


@pytest.mark.parametrize("axes", [0, 1, -1, (0, 1), None])
def test_one_value_is_not_standardized(axes: int | tuple[int, ...] | None) -> None:
    """NumPy would warn of it on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="too few values"):
            partial(_standardized, axes, free=1)(np.ones((1, 1, 1)))


def test_a_missing_row_of_a_gru_bias_is_a_change_of_that_row_alone() -> None:
    bias = np.arange(1.0, 15.0).reshape(2, 7)
    (without_input, without_recurrent) = (_without_bias(row)({"bias": bias}) for row in range(2))
    assert np.array_equal(without_input["bias"], [0 * bias[0], bias[1]])
    assert np.array_equal(without_recurrent["bias"], [bias[0], 0 * bias[1]])
