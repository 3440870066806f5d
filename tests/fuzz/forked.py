"""The HDF5 parser's child by ``fork`` instead of by a new interpreter: the same code, sooner.

The child runs ``parser_child.serve`` with the job that the real one gets, on the same pipes, and
gives up the same rights; only the import of h5py has been paid for already.
"""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import cast
from unittest import mock

import h5py

from keras2torch_birnn.readers.hdf5 import parser_child, parser_process
from keras2torch_birnn.readers.input_files import Window

assert h5py  # imported here, so that no child has to


class Forked:
    """The part of ``subprocess.Popen`` that the parser's owner uses."""

    def __init__(self, pid: int, stdin: io.FileIO, stdout: io.BufferedReader) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout
        self.returncode: int | None = None

    def kill(self) -> None:
        """Kill it unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end; a signal is a negative number."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def fork(work: Callable[[], None]) -> tuple[int, int, int]:
    """Run ``work`` in a child with pipes at 0 and 1: its id, where to write, where to read."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs_in)
        os.close(theirs_out)
        return pid, ours_out, ours_in
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGVTALRM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        gc.disable()
        os.dup2(theirs_in, 0)
        os.dup2(theirs_out, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for end in (theirs_in, theirs_out, ours_in, ours_out):
            os.close(end)
        sys.stdin = open(0, encoding="utf-8", closefd=False)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        work()
    finally:
        os._exit(0)


class Alarm:
    """The part of ``threading.Timer`` in use, by the process's own clock, without a thread."""

    daemon = True

    def __init__(self, seconds: float, act: Callable[[], None]) -> None:
        self._seconds, self._act = seconds, act

    def start(self) -> None:
        """Act when the time is over."""
        signal.signal(signal.SIGALRM, lambda _number, _frame: self._act())
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def cancel(self) -> None:
        """Do not act any more."""
        signal.setitimer(signal.ITIMER_REAL, 0)


def install(cpu_seconds: int) -> None:
    """From now on every parser in this process is a fork, with this limit of computing time."""
    parser_process._LIMITS["cpu"] = cpu_seconds
    mock.patch("threading.Timer", Alarm).start()

    def start(window: Window) -> subprocess.Popen[bytes]:
        job = json.loads(json.dumps({**parser_process.job_of(window), "import_from": []}))
        pid, to_child, from_child = fork(lambda: parser_child.serve(job, sys.stdout.buffer))
        child = Forked(pid, io.FileIO(to_child, "w"), os.fdopen(from_child, "rb"))
        return cast("subprocess.Popen[bytes]", child)

    mock.patch.object(parser_process, "_start", start).start()
