"""The check after each test that torch's settings are what they were before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch_settings import read_settings, unchanged_settings


def change_dtype() -> None:
    torch.set_default_dtype(torch.float64)


def change_gradients() -> None:
    torch.set_grad_enabled(False)


def change_algorithms() -> None:
    torch.use_deterministic_algorithms(True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_dtype, "default dtype"),
        (change_gradients, "gradients"),
        (change_algorithms, "deterministic algorithms"),
    ],
)
def test_a_setting_that_is_left_changed_is_named(change: Callable[[], None], named: str) -> None:
    before = read_settings(torch)
    try:
        with (
            pytest.raises(AssertionError, match=f"left changed: {{'{named}': "),
            unchanged_settings(),
        ):
            change()
    finally:
        torch.set_default_dtype(before["default dtype"])
        torch.set_grad_enabled(before["gradients"])
        torch.use_deterministic_algorithms(before["deterministic algorithms"])


def test_threads_are_set_back() -> None:
    before = torch.get_num_threads()
    with unchanged_settings():
        torch.set_num_threads(before + 2)
    assert torch.get_num_threads() == before
