"""Run commands, scripts and Python code, each in a fork of one process that has torch.

A line of JSON on stdin is a job: ``arguments`` of the command or of a ``script``, or ``code``;
``folder``, ``environment``, ``strict`` (warnings of the code are errors), ``terminal`` (all streams
are one). The answer is a line of JSON: ``code``, ``out``, ``err``. What takes seconds to import is
imported once, and nothing of this package: a job finds it as a new process does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

_SLOW = ("torch", "torch.export", "torch.onnx", "onnx", "onnxscript", "typer", "safetensors.torch")


def work(job: dict[str, Any]) -> None:
    """Do a job in this process."""
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    del sys.path[0]  # the folder of this file
    if "code" in job:
        sys.path.insert(0, "")
        if job["strict"]:
            warnings.simplefilter("error")
        exec(compile(job["code"], "page", "exec"), {"__name__": "__main__"})
        return
    sys.argv = [job.get("script", "k2t"), *job["arguments"]]
    if "script" in job:
        runpy.run_path(job["script"], run_name="__main__")
        return
    from keras2torch_birnn.cli import main

    main()


def exit_code(job: dict[str, Any]) -> int:
    """Do a job, and return the exit code that its process would have."""
    try:
        work(job)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(job: dict[str, Any]) -> None:
    """Do a job, and end this process as it would."""
    code = exit_code(job)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a job may close one
            stream.flush()
    os._exit(code)


def run_in_terminal(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job in a fork whose stdin, stdout and stderr are a terminal."""
    import pty  # of POSIX

    child, ours = pty.fork()
    if not child:
        end(job)
    text = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal like this
        while piece := os.read(ours, 4096):
            text += piece
    _, status = os.waitpid(child, 0)
    os.close(ours)
    return {"code": os.waitstatus_to_exitcode(status), "out": text.decode(), "err": ""}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job in a fork."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        child = os.fork()
        if not child:
            for number, file in enumerate(files, 1):
                os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), number)
            end(job)
        _, status = os.waitpid(child, 0)
        out, err = (file.read_text("utf-8") for file in files)
    return {"code": os.waitstatus_to_exitcode(status), "out": out, "err": err}


def main() -> None:
    """Answer until stdin ends."""
    for name in _SLOW:
        with contextlib.suppress(ImportError):  # pages that need it are skipped
            importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        answer = run_in_terminal(job) if job.get("terminal") else run(job)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
