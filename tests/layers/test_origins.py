"""Where elements of tensors come from is found in what a builder makes of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from keras2torch_birnn.layers import origins
from keras2torch_birnn.layers.origins import find_origins
from keras2torch_birnn.rnn.parameters import to_parameter

SHAPES = {"kernel": np.empty((2, 3)), "bias": np.empty(5), "table": np.empty((7, 11))}


def build(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    kernel, bias = weights["kernel"], weights["bias"]
    return {
        "turned": to_parameter(kernel[::-1].T),
        "joined": torch.from_numpy(np.concatenate([bias[1:3], kernel[1], [0.0, np.nan, 1.0]])),
        "mixed": torch.from_numpy(np.stack([bias[0], bias[0] + bias[1], bias[2] * 2])),
        "large": to_parameter(weights["table"]),
        "count": torch.tensor(13),
    }


def test_copies_fixed_and_computed_elements_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "_LARGE", 77)
    found = find_origins(build, SHAPES)
    copies = {
        key: [(one.tensor, one.elements.tolist(), one.positions.tolist()) for one in parts]
        for key, parts in found.copies.items()
    }
    assert copies == {
        "kernel": [
            ("turned", [0, 1, 2, 3, 4, 5], [3, 0, 4, 1, 5, 2]),
            ("joined", [2, 3, 4], [3, 4, 5]),
        ],
        "bias": [("joined", [0, 1], [1, 2]), ("mixed", [0], [0])],
    }
    fixed = {one.tensor: (one.elements.tolist(), one.values) for one in found.fixed}
    assert fixed.keys() == {"joined", "count"}
    np.testing.assert_array_equal(fixed["joined"][1], [0.0, np.nan, 1.0])
    assert (fixed["joined"][0], fixed["count"][1].tolist()) == ([5, 6, 7], [13.0])
    assert {name: at.tolist() for name, at in found.computed.items()} == {"mixed": [1, 2]}
    assert found.whole == {"table": "large"}
    assert found.shapes["turned"] == (3, 2)
    assert found.shapes["large"] == (7, 11)


def test_a_large_weight_in_another_order_is_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "_LARGE", 77)
    found = find_origins(
        lambda one: {"turned": to_parameter(one["table"].T)}, {"table": SHAPES["table"]}
    )
    assert found.whole == {}
    (copies,) = found.copies["table"]
    assert copies.positions.tolist() == np.arange(77).reshape(7, 11).T.reshape(-1).tolist()


def test_a_builder_without_weights_makes_fixed_tensors() -> None:
    found = find_origins(lambda _: {"ones": torch.ones(3)}, {})
    assert (found.copies, found.whole, found.computed) == ({}, {}, {})
    assert found.fixed[0].values.tolist() == [1.0, 1.0, 1.0]
