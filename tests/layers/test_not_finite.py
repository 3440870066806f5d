"""Activations of NaN and infinity, as Keras 3.15 computes them on TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.rnn.activations import activation

NAN, INF = float("nan"), float("inf")
# Recorded: activation, input, output. Where sparsemax keeps none, tau is -1 / 0.
RECORDED = [
    ({"name": "hard_shrink", "threshold": 1.5}, [NAN, INF, -INF, -2, 1], [0, INF, -INF, -2, 0]),
    ({"name": "soft_shrink", "threshold": 1.5}, [NAN, INF, -INF, -2, 1], [0, INF, -INF, -0.5, 0]),
    ("sparsemax", [-INF, 1, 2], [0, 0, 1]),
    ("sparsemax", [INF, 1, 2], [INF, INF, INF]),
    ("sparsemax", [INF, INF, 1], [INF, INF, INF]),
    ("sparsemax", [INF, -INF, 0], [INF, NAN, INF]),
    ("sparsemax", [-INF, -INF, -INF], [NAN, NAN, NAN]),
    ("sparsemax", [NAN, 1, 2], [NAN, INF, INF]),
]


@pytest.mark.parametrize(("name", "given", "expected"), RECORDED)
def test_what_is_not_finite_is_as_in_keras(
    name: Any, given: list[float], expected: list[float]
) -> None:
    row = np.array([given])
    np.testing.assert_array_equal(activation(name)(torch.tensor(row)), [expected])
    np.testing.assert_array_equal(activation(name)(torch.tensor(row).float()), [expected])
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(activate(name, row), [expected])
