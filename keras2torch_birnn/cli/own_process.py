"""Call a function in a process of its own, which may die."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from keras2torch_birnn.errors import K2TError, UsageError
from keras2torch_birnn.torch_import import limit_threads

_ADVICE = "k2t convert MODEL OUT --debug may show why"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def call_in_own_process(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Return what a function of a module returns in a new process, which may use all processors.

    Raises:
        K2TError: the process died; UsageError: the system killed it, as it does without memory.
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
            raise _describe_end(process.exitcode or 0) from None
    process.join()
    return result


def _send(there: Connection, function: Callable[..., object], args: Any, kwargs: Any) -> None:
    limit_threads(os.cpu_count() or 1)
    with there:
        there.send(function(*args, **kwargs))


def _describe_end(code: int) -> K2TError:
    """Say how a process ended: ``code`` is its exit code, or the negative number of a signal."""
    if code >= 0:
        return K2TError(f"its process ended with exit code {code}", _ADVICE)
    known = {one.value: one.name for one in signal.Signals}
    name = known.get(-code, f"signal {-code}")
    if name == "SIGKILL":
        return UsageError(
            "its process was killed (SIGKILL), and again when it ran alone",
            "the system does this if memory is short: free some",
        )
    return K2TError(f"its process was ended by {name}", _ADVICE)
