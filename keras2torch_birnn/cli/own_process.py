"""Call a function in a process of its own, which may die."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from keras2torch_birnn.torch_import import limit_threads

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class ProcessEndedError(Exception):
    """A process ended without a result.

    code: its exit code, or the negative number of the signal that ended it.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    def signal_name(self) -> str | None:
        """Return the name of the signal, None if the process ended with an exit code."""
        if self.code >= 0:
            return None
        known = {one.value: one.name for one in signal.Signals}
        return known.get(-self.code, f"signal {-self.code}")


def call_in_own_process(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Return what a function of a module returns in a new process, which may use all processors.

    Raises:
        ProcessEndedError: the process died.
    """
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, function, args, kwargs), daemon=True)
    process.start()
    there.close()
    with here:
        try:
            result: Result = here.recv()
        except EOFError:
            process.join()
            raise ProcessEndedError(process.exitcode or 0) from None
    process.join()
    return result


def _send(there: Connection, function: Callable[..., object], args: Any, kwargs: Any) -> None:
    limit_threads(os.cpu_count() or 1)
    with there:
        there.send(function(*args, **kwargs))
