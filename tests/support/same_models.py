"""Models with the same weights: equal to the bit, and their outputs as nearly as torch allows.

Products of torch depend in their last bits on where weights lie in memory: on AMD's Zen 4 two
copies of a model give other bits, as those of a `.safetensors` are not on whole cache lines.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def assert_same_weights(model: nn.Module, other: nn.Module) -> None:
    """Compare names, parameters and buffers, to the bit."""
    found, wanted = model.state_dict(), other.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def assert_same_outputs(got: Any, wanted: Any) -> None:
    """Compare what two models with the same weights compute, to the rounding of their dtype."""
    torch.testing.assert_close(got, wanted, equal_nan=True)
