"""A bar while long work runs: on a terminal, never in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from keras2torch_birnn.progress import Unit, reporting_to

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """Bar of rich on stderr, to which the work reports."""

    def __init__(self, what: str, progress: Progress) -> None:
        self._what, self._progress = what, progress
        self._task = progress.add_task(what, total=None)

    def begin(self, phase: str, total: int | None, unit: Unit) -> None:
        """Show the next phase, with a clock of its own."""
        self._progress.remove_task(self._task)
        text = f"{self._what}: {phase}" if phase else self._what
        self._task = self._progress.add_task(text, total=total or None)

    def advance(self, amount: int) -> None:
        """Show that more is done."""
        self._progress.advance(self._task, amount)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bar away while lines are printed."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()


class Hidden:
    """No bar: what is shown in a pipe."""

    def hidden(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()


@contextmanager
def show_progress(what: str, *, quiet: bool = False) -> Iterator[Bar | Hidden]:
    """Show a bar while the work inside runs, if stderr is a terminal whose cursor moves."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield Hidden()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=console.is_dumb_terminal,
    ) as progress:
        bar = Bar(what, progress)
        with reporting_to(bar):
            yield bar
