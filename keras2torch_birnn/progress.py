"""Progress of long work: where it is done, it is reported; a command listens and shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, Protocol, TypeAlias

Unit: TypeAlias = Literal["bytes", "layers", "files", "runs"]


class Listener(Protocol):
    """Receiver of reports."""

    def begin(self, phase: str, total: int | None, unit: Unit) -> None:
        """Take note that a phase begins; ``total`` is None where its length is unknown."""
        ...

    def advance(self, amount: int) -> None:
        """Take note that so many units more are done."""
        ...


_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def reporting_to(listener: Listener | None) -> Iterator[None]:
    """Send reports of the work inside to ``listener``; None: to nobody."""
    before = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(before)


def begin(phase: str, total: int | None = None, unit: Unit = "bytes") -> None:
    """Report that a phase begins, which ends when the next one does."""
    listener = _LISTENER.get()
    if listener is not None:
        listener.begin(phase, total, unit)


def advance(amount: int) -> None:
    """Report that so many units of the phase more are done."""
    listener = _LISTENER.get()
    if listener is not None:
        listener.advance(amount)
