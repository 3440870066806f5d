"""A bar with percent and bytes while long work runs: on a terminal, never in a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from threading import RLock, Timer
from time import monotonic
from typing import TYPE_CHECKING, Any

from keras2torch_birnn.progress import Unit, reporting_to

if TYPE_CHECKING:
    from rich.progress import Progress

# Seconds before the bar appears; its width, and that of the text before it.
PATIENCE, WIDTH, TEXT = 1.0, 16, 34
# Where these are set, output goes into the cell of a notebook, in which no cursor moves.
_NOTEBOOK = ("JPY_PARENT_PID", "COLAB_RELEASE_TAG")


@dataclass(frozen=True)
class _Phase:
    """Part of the work, with what is done of it."""

    name: str = ""
    total: int | None = None
    unit: Unit = "bytes"
    done: int = 0
    began: float = field(default_factory=monotonic)

    @property
    def amount(self) -> str:
        """The part of the phase that is done, in words."""
        if self.total is None:
            return ""
        if self.unit != "bytes":
            return f"{self.done} of {self.total} {self.unit}"
        from rich.filesize import decimal

        return f"{decimal(self.done)} of {decimal(self.total)}"


class Bar:
    """Bar on stderr, which appears if the work takes longer than ``PATIENCE``."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._phase = _Phase()
        self._lock = RLock()
        self._progress: Progress | None = None
        self._timer = Timer(PATIENCE, self._appear)
        self._timer.daemon = True

    def begin(self, phase: str, total: int | None, unit: Unit) -> None:
        """Show the next phase."""
        with self._lock:
            self._phase = _Phase(phase, total or None, unit)
            self._begin_row()
            self._show()

    def advance(self, amount: int) -> None:
        """Show that more is done."""
        with self._lock:
            now = self._phase
            self._phase = replace(now, done=now.done + amount)
            self._show()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bar away while lines are printed."""
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
            try:
                yield
            finally:
                if self._progress is not None:
                    self._progress.start()

    @contextmanager
    def running(self) -> Iterator[Bar]:
        """Show the bar while the work inside runs and reports to it."""
        self._timer.start()
        try:
            with reporting_to(self):
                yield self
        finally:
            self._timer.cancel()
            self._timer.join()
            if self._progress is not None:
                self._progress.stop()

    def _appear(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        with self._lock:
            self._progress = Progress(
                TextColumn("{task.fields[what]}", markup=False),
                BarColumn(WIDTH),
                TextColumn("{task.fields[percent]}", markup=False),
                TextColumn("{task.fields[amount]}", markup=False),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._begin_row()
            self._show()
            self._progress.start()

    def _begin_row(self) -> None:
        """Begin a row with a clock of its own: that of a row that was full stands still."""
        if self._progress is None:
            return
        before = self._progress.task_ids
        self._progress.add_task("", total=self._phase.total, **self._describe())
        self._progress.tasks[-1].start_time = self._phase.began
        for row in before:
            self._progress.remove_task(row)

    def _show(self) -> None:
        if self._progress is not None:
            row = self._progress.task_ids[0]
            self._progress.update(row, completed=self._phase.done, **self._describe())

    def _describe(self) -> dict[str, Any]:
        """Return the texts of the row."""
        phase = self._phase
        text = f"{self._what}: {phase.name}" if phase.name else self._what
        percent = "" if phase.total is None else f"{min(100, 100 * phase.done // phase.total)} %"
        return {"what": _cut(text), "percent": percent, "amount": phase.amount}


def _cut(text: str) -> str:
    """Leave out the middle of a long text."""
    return text if len(text) <= TEXT else f"{text[: TEXT // 2 - 2]}...{text[-TEXT // 2 + 1 :]}"


class Hidden:
    """No bar: what is shown in a pipe."""

    def hidden(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()


def show_progress(what: str, *, quiet: bool = False) -> AbstractContextManager[Bar | Hidden]:
    """Show a bar while long work runs, if stderr is a terminal whose cursor moves."""
    return nullcontext(Hidden()) if quiet or not _moves_cursor() else Bar(what).running()


def _moves_cursor() -> bool:
    # (sys.stderr is None where the caller closed it.)
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    plain = os.environ.get("TERM", "dumb") in ("", "dumb", "unknown") and sys.platform != "win32"
    return is_terminal and not plain and not any(name in os.environ for name in _NOTEBOOK)
