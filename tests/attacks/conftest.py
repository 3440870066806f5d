"""The two processes that run the attacked commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness import Runner

pytest.register_assert_rewrite("harness", "commands")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Forks, limits and anonymous files are Linux; elsewhere the readers' own tests have to do."""
    if sys.platform != "linux":
        here = Path(__file__).parent
        for item in items:
            if item.path.is_relative_to(here) and {"reading", "converting"} & {*item.fixturenames}:
                item.add_marker(pytest.mark.skip(reason="Linux"))


def _runner(mode: str) -> Iterator[Runner]:
    from harness import Runner

    running = Runner(mode)
    yield running
    running.close()


@pytest.fixture(scope="session")
def reading() -> Iterator[Runner]:
    """Runs what need not import torch."""
    yield from _runner("reading")


@pytest.fixture(scope="session")
def converting() -> Iterator[Runner]:
    """Runs everything else."""
    yield from _runner("torch")


@pytest.fixture(scope="session")
def runners(reading: Runner, converting: Runner) -> Mapping[str, Runner]:
    """Commands that read a model, and what runs them."""
    return {"inspect": reading, "convert": converting}
