"""Read HDF5 files in this process, by the code that otherwise runs in a process of its own.

The tests read thousands of files, and a process for each would take longer than most of what they
do. What is the process's own, its rights and its end, has tests marked ``own_processes``.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import h5py

from keras2torch_birnn.readers.hdf5 import parser_child, parser_process
from keras2torch_birnn.readers.input_files import Window


class _Requests(io.BytesIO):
    """Pipe for requests, each of which is answered at once, into ``replies``."""

    def __init__(self, index: parser_child.Index, limits: dict[str, int], replies: Any) -> None:
        super().__init__()
        self._index, self._limits, self._replies = index, limits, replies

    def write(self, line: Any) -> int:
        with self._replies.filling():
            parser_child.respond(self._index, line, self._limits, self._replies)
        return len(line)


class _Replies(io.BytesIO):
    """Answers that are not read yet."""

    @contextmanager
    def filling(self) -> Iterator[None]:
        self.seek(0)
        self.truncate()
        yield
        self.seek(0)


class _NoProcess:
    """The file, opened here; what a parser process needs of ``subprocess.Popen``."""

    returncode = 0

    def __init__(self, window: Window) -> None:
        limits = parser_process.job_of(window)["limits"]
        self._fd: int | None = os.dup(window.file.fileno())
        self._index: parser_child.Index | None = None
        self.stdin: Any = io.BytesIO()
        self.stdout = _Replies()
        with self.stdout.filling():
            part = parser_child.InheritedFile(self._fd, window.offset, window.size)
            try:
                self._index = parser_child.Index(h5py, part, limits)
            except Exception as error:
                why = parser_child.explain(error, limits)
                parser_child.say({"refused": why}, limits, self.stdout)
            else:
                self.stdin = _Requests(self._index, limits, self.stdout)

    def kill(self) -> None:
        if self._index is not None:
            self._index.file.close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def wait(self) -> int:
        return self.returncode


@contextmanager
def _in_time(parser: Any, seconds: float) -> Iterator[threading.Event]:
    """Answers come at once: no thread watches this process."""
    yield threading.Event()


@contextmanager
def parsing_here() -> Iterator[None]:
    """Start no process for HDF5 files."""
    with (
        patch.object(parser_process, "_start", _NoProcess),
        patch.object(parser_process.ParserProcess, "_ending_after", _in_time),
    ):
        yield
