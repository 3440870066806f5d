"""Plugins are registered for the whole process: every test begins and ends without any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from plugin_files import unregister_all

from keras2torch_birnn.schema.custom_layers import REGISTERED


@pytest.fixture(autouse=True)
def nothing_registered() -> Iterator[None]:
    """Every test begins without plugins and leaves none behind."""
    tables: tuple[dict[str, Any], ...] = (
        REGISTERED.layers,
        REGISTERED.lambdas,
        REGISTERED.equations,
        REGISTERED.initial_states,
        REGISTERED.loaded,
    )
    kept = [dict(table) for table in tables]
    unregister_all()
    yield
    unregister_all()
    for table, old in zip(tables, kept, strict=True):
        table.update(old)
