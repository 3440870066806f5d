"""Parse HDF5 files in this process, by the code that otherwise runs in a process of its own.

The tests read thousands of files, and a process for each would take longer than most of what they
do. What is the process's own, its rights and its end, has tests marked ``own_processes``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import h5py

from keras2torch_birnn import limits
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.readers.hdf5 import parser_child, parser_process


class _NoProcess:
    """The file, opened here; what a parser process needs of ``subprocess.Popen``."""

    stdin = stdout = None
    returncode = 0

    def __init__(self, window: Window) -> None:
        fd = os.dup(window.file.fileno())
        part = parser_child.InheritedFile(fd, window.offset, window.size)
        self._file: Any = None
        self._fd: int | None = fd
        self.first: dict[str, Any] = {"is": "open"}
        try:
            self._file = h5py.File(part, "r")
            self.index = parser_child.Index(h5py, self._file, parser_process._LIMITS)
        except Exception as error:
            self.first = {"refused": parser_child.explain(error, parser_process._LIMITS)}

    def kill(self) -> None:
        if self._file:
            self._file.close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def wait(self) -> int:
        return self.returncode


def _answer(parser: Any, request: dict[str, Any] | None) -> tuple[bytes, bool]:
    """Answer as the process does, line by line of JSON, and in time: no thread watches this one."""
    reply: Any = [parser._process.first]
    if request is not None:
        given = json.loads(json.dumps(request))
        reply = parser_child.answer(parser._process.index, given, parser_process._LIMITS)
    line = json.dumps(reply, ensure_ascii=False).encode()
    assert len(line) < limits.MAX_REPLY_BYTES
    return line + b"\n", False


@contextmanager
def parsing_here() -> Iterator[None]:
    """Start no process for HDF5 files."""
    with (
        patch.object(parser_process, "_start", _NoProcess),
        patch.object(parser_process.ParserProcess, "_line", _answer),
    ):
        yield
