"""Activations of a spec as text for people. No torch: ``k2t inspect`` uses it without."""

from __future__ import annotations

from typing import Any


def activation_label(value: Any) -> str:
    """Write an activation as its name, followed by its options in parentheses if it has any."""
    if isinstance(value, str):
        return value
    options = ", ".join(f"{k}={v}" for k, v in value.items() if k != "name")
    return f"{value['name']}({options})"
