"""Stand in for Hypothesis where it is not installed: its tests are skipped, all others run."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

REASON = "hypothesis is not installed"
Test = Callable[..., Any]


class _Anything:
    """A strategy, a setting or a function that makes them."""

    def __getattr__(self, name: str) -> _Anything:
        return self

    def __call__(self, *_: Any, **__: Any) -> _Anything:
        return self

    def __or__(self, other: Any) -> _Anything:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def given(*_: Any, **__: Any) -> Callable[[Test], Test]:
    """Skip the test, also where it is a function inside another."""

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def skipped(*_: Any, **__: Any) -> None:
            pytest.skip(REASON)

        return pytest.mark.skip(reason=REASON)(skipped)

    return decorate


def _keep(*_: Any, **__: Any) -> Callable[[Test], Test]:
    return lambda test: test


def install() -> None:
    """Let ``import hypothesis`` find this."""
    package = ModuleType("hypothesis")
    package.__spec__ = ModuleSpec("hypothesis", None)  # torch asks where its files are
    vars(package).update(
        dict.fromkeys(("HealthCheck", "Phase", "assume", "event", "strategies"), _Anything()),
        **dict.fromkeys(("settings", "seed", "example"), _keep),
        given=given,
    )
    sys.modules.update({"hypothesis": package, "hypothesis.strategies": package.strategies})
