"""Run jobs in forks of one process that has torch: importing it takes longer than most of them."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from commands import Run, environment, run_process

from keras2torch_birnn.exporting import child_process

HAS_FORK = hasattr(os, "fork")
# Undo what a shell does to background jobs: they and their children ignore Ctrl-C and hang-ups.
HEED_SIGNALS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""


@functools.cache
def _worker() -> subprocess.Popen[str]:
    path = Path(__file__).with_name("page_worker.py")
    worker = subprocess.Popen(
        [sys.executable, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(worker.communicate)
    return worker


def run_in_fork(job: Mapping[str, Any]) -> Run:
    """Run a job of ``page_worker.py``."""
    worker = _worker()
    assert worker.stdin
    assert worker.stdout
    worker.stdin.write(json.dumps(job) + "\n")
    worker.stdin.flush()
    return Run(**json.loads(worker.stdout.readline()))


def run_command(*arguments: object, before: str = "") -> Run:
    """Run the command as ``run_code`` does, after other code, as the installed one begins."""
    call = ["k2t", *map(str, arguments)]
    return run_code(
        f"{before}\nimport sys\nsys.argv = {call!r}\n"
        "from keras2torch_birnn.cli import main\nmain()\n"
    )


def run_code(code: str, *, terminal: bool = False, **variables: str) -> Run:
    """Run Python code in a fork that has torch, and nothing of this package; else in a process.

    terminal: it is stdin, stdout and stderr.
    """
    if not HAS_FORK:
        return run_process(sys.executable, "-c", code, env=environment(**variables))
    job = {"code": code, "strict": False, "terminal": terminal, "folder": str(Path.cwd())}
    return run_in_fork({**job, "environment": environment(**variables)})


def in_terminal(code: str, **variables: str) -> str:
    """Return the output of Python code whose stdin, stdout and stderr are a terminal."""
    done = run_code(code, terminal=True, **variables)
    assert done.code == 0, done.out
    return done.out


def run_script(script: object, *arguments: object, folder: Path) -> Run:
    """Run a script in a fork that has torch, and nothing of this package; else in a process."""
    named = [str(one) for one in arguments]
    if HAS_FORK:
        job = {"script": str(script), "arguments": named, "folder": str(folder)}
        return run_in_fork({**job, "environment": {**os.environ}})
    return run_process(sys.executable, "-I", script, *named, cwd=folder)


def _run_child(command: Sequence[str], *, cwd: Path, **_: Any) -> SimpleNamespace:
    _, _, script, *arguments = command
    done = run_script(script, *arguments, folder=cwd)
    return SimpleNamespace(returncode=done.code, stderr=done.err)


@contextmanager
def exports_in_forks() -> Iterator[None]:
    """Run exported files in forks; without a fork, in processes of their own as for users."""
    instead = SimpleNamespace(run=_run_child, TimeoutExpired=subprocess.TimeoutExpired)
    with patch.object(child_process, "subprocess", instead) if HAS_FORK else nullcontext():
        yield
