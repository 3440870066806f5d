"""Plugins are registered for the whole process: every test begins and ends without any."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from plugin_files import forgetting_plugins


@pytest.fixture(autouse=True)
def nothing_registered() -> Iterator[None]:
    """Every test begins without plugins and leaves none behind."""
    with forgetting_plugins():
        yield
