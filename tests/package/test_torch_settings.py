"""The check after each test that torch's settings are what they were before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch_settings import read_settings, unchanged_settings


@pytest.mark.parametrize(
    ("change", "value", "named"),
    [
        (torch.set_default_dtype, torch.float64, "default dtype"),
        (torch.set_grad_enabled, False, "gradients"),
        (torch.use_deterministic_algorithms, True, "deterministic algorithms"),
    ],
)
def test_a_setting_that_is_left_changed_is_named(
    change: Callable[[Any], object], value: Any, named: str
) -> None:
    before = read_settings(torch)
    try:
        with (
            pytest.raises(AssertionError, match=f"left changed: {{'{named}': "),
            unchanged_settings(),
        ):
            change(value)
    finally:
        change(before[named])


def test_threads_are_set_back() -> None:
    before = torch.get_num_threads()
    with unchanged_settings():
        torch.set_num_threads(before + 2)
    assert torch.get_num_threads() == before
