"""Parent side of the parser process: start it, send requests, kill it when it fails."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError, K2TError, invalid, printable
from keras2torch_birnn.readers.files.window import Window

_SCRIPT = Path(__file__).with_name("parser_child.py")
_LIMITS = {
    "cpu": limits.MAX_PARSER_CPU_SECONDS,
    "memory": limits.MAX_PARSER_MEMORY,
    "reply": limits.MAX_REPLY_BYTES,
    "depth": limits.MAX_GROUP_DEPTH,
    "name": limits.MAX_NAME_BYTES,
    "names": limits.MAX_NAMES,
    "text": limits.MAX_JSON_BYTES,
    "members": limits.MAX_GROUP_MEMBERS,
    "chunks": limits.MAX_CHUNKS,
    "inline": limits.MAX_INLINE_BYTES,
    "open_groups": limits.MAX_OPEN_GROUPS,
}
_TRUNCATED = re.compile(
    r"truncated file: eof = (\d+), sblock->base_addr = (\d+), stored_eof = (\d+)"
)


def import_roots() -> list[str]:
    """Return the folders of h5py and numpy, which an isolated interpreter does not search."""
    found = importlib.util.find_spec("h5py")
    if found is None or found.origin is None:
        raise K2TError("h5py is not installed", "pip install h5py")
    origins = (found.origin, np.__file__)
    return list(dict.fromkeys(str(Path(origin).parent.parent) for origin in origins))


def isolated_environment() -> dict[str, str]:
    """Return the environment of a process that runs the HDF5 library."""
    # No HDF5_* setting of the user's may load plugins or change drivers. One thread is enough for
    # the linear algebra library that NumPy brings along.
    kept = {name: text for name, text in os.environ.items() if not name.startswith("HDF5_")}
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if sys.platform != "win32":
        # Importing NumPy asks `platform` for the processor, which would run the program uname
        kept["PATH"] = os.devnull
    return {**kept, **threads, "HDF5_PLUGIN_PRELOAD": "::"}


def _start(window: Window) -> subprocess.Popen[bytes]:
    by_path = sys.platform == "win32"  # which cannot hand over an open file by its number
    job = {
        "fd": None if by_path else window.file.fileno(),
        "path": str(window.file.name) if by_path else None,
        "offset": window.offset,
        "size": window.size,
        "import_from": import_roots(),
        "limits": _LIMITS,
    }
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(_SCRIPT), json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=isolated_environment(),
        pass_fds=() if by_path else (window.file.fileno(),),
    )


def _how_it_ended(code: int, timed_out: bool) -> str:
    if timed_out:
        return f"did not finish in {limits.MAX_PARSER_WALL_SECONDS:g} s"
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        name = names.get(-code, f"signal {-code}")
        if name == "SIGXCPU":
            return f"did not finish in {limits.MAX_PARSER_CPU_SECONDS} s of computing"
        return f"crashed ({name})"
    return f"stopped (exit code {code})"


def _reason(text: str) -> str:
    """Make the child's reason printable; say "truncated" instead of HDF5's own text."""
    if (cut := _TRUNCATED.search(text)) is not None:
        here, base, whole = map(int, cut.groups())
        return f"truncated: {here - base} bytes here, its header says {whole - base}"
    return "".join(c if c.isprintable() else "?" for c in text)


class ParserProcess:
    """A child process with one file open. Every failure of it is an error of the file."""

    def __init__(self, window: Window) -> None:
        self._error: K2TError | None = None
        self._opened = False
        try:
            self._process = _start(window)
        except OSError as error:
            raise InvalidModelFileError(
                f"the process that reads HDF5 did not start ({error.strerror})",
                "free memory, processes or open files, and try again",
            ) from None

    def close(self) -> None:
        """Kill the child; it holds no state to save."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # the child may have died before it read all
                if pipe is not None:
                    pipe.close()
        self._process.wait()

    def ask(self, question: str, paths: Sequence[str], *more: Any) -> list[Any]:
        """Return one answer for each path: the child's, or an InvalidModelFileError."""
        if not self._opened:
            self._greet()
        answers: list[Any] = []
        for start in range(0, len(paths), limits.MAX_PATHS_PER_REQUEST):
            batch = list(paths[start : start + limits.MAX_PATHS_PER_REQUEST])
            replies = self._exchange({"ask": question, "paths": batch, "more": more}, len(batch))
            answers += [self._unwrap(p, r) for p, r in zip(batch, replies, strict=True)]
        return answers

    def _greet(self) -> None:
        (reply,) = self._exchange(None, 1)
        match reply:
            case {"failed": why}:
                raise self._end(
                    K2TError(f"h5py cannot be imported ({printable(why)})", "reinstall it")
                )
            case {"refused": str(why)}:
                raise self._end(invalid(_reason(why)))
        self._opened = True

    def _unwrap(self, path: str, reply: object) -> Any:
        match reply:
            case {"is": answer}:
                return answer
            case {"refused": str(why)}:
                return invalid(_reason(why), path)
        raise self.impossible()

    def impossible(self) -> K2TError:
        """Kill the child after an impossible answer, and make the error."""
        return self._end(invalid("the HDF5 parser was misled by this file"))

    def _end(self, error: K2TError) -> K2TError:
        self._error = error
        self.close()
        return error

    def _exchange(self, request: dict[str, Any] | None, count: int) -> list[Any]:
        if self._error is not None:
            raise self._error
        line, timed_out = self._line(request)
        if len(line) > limits.MAX_REPLY_BYTES:
            raise self.impossible()
        if not line.endswith(b"\n"):
            self.close()
            how = _how_it_ended(self._process.returncode, timed_out)
            raise self._end(invalid(f"the HDF5 parser {how} on this file"))
        try:
            replies = json.loads(line)
        except (ValueError, RecursionError):
            raise self.impossible() from None
        if not isinstance(replies, list) or len(replies) != count:
            raise self.impossible()
        return replies

    def _line(self, request: dict[str, Any] | None) -> tuple[bytes, bool]:
        """Send a request and read one line, incomplete if the child died or wrote too much."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._process.kill()

        alarm = threading.Timer(limits.MAX_PARSER_WALL_SECONDS, expire)
        alarm.daemon = True
        alarm.start()
        try:
            return self._write_and_read(request), expired.is_set()
        finally:
            alarm.cancel()

    def _write_and_read(self, request: dict[str, Any] | None) -> bytes:
        to_child, from_child = self._process.stdin, self._process.stdout
        if to_child is None or from_child is None:
            return b""
        try:
            if request is not None:
                to_child.write(json.dumps(request).encode() + b"\n")
                to_child.flush()
            return from_child.readline(limits.MAX_REPLY_BYTES + 1)
        except OSError:  # a broken pipe: it has died
            return b""
