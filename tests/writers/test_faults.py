"""Errors and ends at every step of writing: the source stays, and nothing partial gets a name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import contents
from sampling import in_turn
from specs import FIXTURES
from trained import remove, train

import keras2torch_birnn as k2t

SOURCES = (
    "keras-2.3.1/mask_bi_gru_after_seq.h5",
    "keras-3.15.1/mask_stack_plain.keras",
)
# What writing calls, and may fail at any call of it.
STEPS = ("fsync", "open", "link", "sendfile", "chmod")


class _FaultError(OSError):
    pass


@contextmanager
def failing(step: str, at: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let the call number ``at`` of an ``os`` function raise; the list counts the calls."""
    right: Callable[..., Any] = getattr(os, step)
    calls = [0]

    def wrong(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise _FaultError(28, "No space left on device")
        return right(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, step, wrong)
        yield calls


def prepared(name: str, folder: Path) -> tuple[Path, Any, Path]:
    """Return source, trained model and NEW."""
    source = folder / "source" / Path(name).name
    source.write_bytes((FIXTURES / name).read_bytes())
    return source, train(k2t.convert(source)), folder / "out" / source.name


def attempt(model: Any, source: Path, out: Path) -> bool:
    """Try to write back; return whether it succeeded. An error must be one of ours."""
    try:
        k2t.write_back(model, source, out)
    except k2t.K2TError:
        return False
    return True


@pytest.mark.parametrize(("step", "name"), in_turn(STEPS, SOURCES))
def test_every_fault_leaves_the_source_and_nothing_else(
    step: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "out").mkdir()
    source, model, out = prepared(name, tmp_path)
    before = contents(tmp_path / "source")
    with failing(step, 0, monkeypatch) as calls:
        assert attempt(model, source, out)
    total, whole = calls[0], contents(tmp_path / "out")
    places = {1, 2, total // 2, total} if total else set()
    for at in sorted(places - {0}):
        for path in (tmp_path / "out").iterdir():
            remove(path)
        with failing(step, at, monkeypatch):
            done = attempt(model, source, out)
        assert contents(tmp_path / "source") == before
        assert contents(tmp_path / "out") == (whole if done else {})
