"""Parent side of the parser process: start it, send requests, kill it when it fails."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError, K2TError, invalid, printable
from keras2torch_birnn.readers.input_files import Window

_NOTHING = memoryview(b"")
# A large pipe: on a busy machine its ends wait for each other less often.
_PIPE_BYTES = 1 << 20
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


def seconds_for(size: int) -> int:
    """Return how much longer than a small one a file of this size may take."""
    return size * limits.MAX_PARSER_SECONDS_PER_GIB >> 30


def job_of(window: Window) -> dict[str, Any]:
    """Return what the child is told: the file, its limits."""
    by_path = sys.platform == "win32"  # which cannot hand over an open file by its number
    return {
        "fd": None if by_path else window.file.fileno(),
        "path": str(window.file.name) if by_path else None,
        "offset": window.offset,
        "size": window.size,
        "import_from": import_roots(),
        "limits": {
            **_LIMITS,
            "cpu": _LIMITS["cpu"] + seconds_for(window.size),
            "memory": _LIMITS["memory"] + 2 * window.size,
        },
    }


def _start(window: Window) -> subprocess.Popen[bytes]:
    job = job_of(window)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_SCRIPT), json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=isolated_environment(),
        pass_fds=() if job["fd"] is None else (job["fd"],),
    )
    if sys.platform == "linux" and process.stdout is not None:
        import fcntl

        with suppress(OSError):  # a small pipe works as well
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return process


def _how_it_ended(code: int, size: int) -> str:
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        name = names.get(-code, f"signal {-code}")
        if name == "SIGXCPU":
            seconds = limits.MAX_PARSER_CPU_SECONDS + seconds_for(size)
            return f"did not finish in {seconds} s of computing"
        return f"crashed ({name})"
    if code >= 0xC0000000:  # the codes of Windows for a crash
        return f"crashed ({code:#x})"
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
        self._window = window
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
        answers, _ = self._talk(question, paths, more)
        return answers

    def read_into(self, path: str, buffer: memoryview) -> None:
        """Fill ``buffer`` with the values of an array as they are stored."""
        (answer,), missing = self._talk("values", [path], (), buffer)
        if isinstance(answer, K2TError):
            raise answer
        if missing:
            raise self.impossible()

    def impossible(self) -> K2TError:
        """Kill the child after an impossible answer, and make the error."""
        return self._end(invalid("the HDF5 parser was misled by this file"))

    def _end(self, error: K2TError) -> K2TError:
        self._error = error
        self.close()
        return error

    def _talk(
        self,
        question: str,
        paths: Sequence[str],
        more: Sequence[Any],
        buffer: memoryview = _NOTHING,
    ) -> tuple[list[Any], int]:
        """Send a request; fill ``buffer`` with the blocks that come before the answers.

        Returns the answers, and how many bytes of the buffer have not come.
        """
        if self._error is not None:
            raise self._error
        request = json.dumps({"ask": question, "paths": list(paths), "more": more})
        seconds = limits.MAX_PARSER_WALL_SECONDS + seconds_for(len(buffer))
        with self._ending_after(seconds) as expired:
            line, missing = self._write_and_read(request, buffer)
        if not line.endswith(b"\n") and len(line) <= limits.MAX_REPLY_BYTES:
            self.close()
            how = f"did not finish in {seconds:g} s"
            if not expired.is_set():
                how = _how_it_ended(self._process.returncode, self._window.size)
            raise self._end(invalid(f"the HDF5 parser {how} on this file"))
        try:
            replies = json.loads(line)
        except (ValueError, RecursionError):
            raise self.impossible() from None
        match replies:
            case {"failed": why}:
                advice = "reinstall it"
                raise self._end(K2TError(f"h5py cannot be imported ({printable(why)})", advice))
            case {"refused": str(why)}:
                raise self._end(invalid(_reason(why)))
            case list() if len(replies) == len(paths):
                return [self._unwrap(p, r) for p, r in zip(paths, replies, strict=True)], missing
        raise self.impossible()

    def _unwrap(self, path: str, reply: object) -> Any:
        match reply:
            case {"is": answer}:
                return answer
            case {"refused": str(why)}:
                return invalid(_reason(why), path)
        raise self.impossible()

    @contextmanager
    def _ending_after(self, seconds: float) -> Iterator[threading.Event]:
        """Kill the child if the block takes longer, which then finds the pipe at its end."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._process.kill()

        alarm = threading.Timer(seconds, expire)
        alarm.daemon = True
        alarm.start()
        try:
            yield expired
        finally:
            alarm.cancel()

    def _write_and_read(self, request: str, buffer: memoryview) -> tuple[bytes, int]:
        """Send a request, receive blocks and then one line, incomplete if the child died."""
        to_child, from_child = self._process.stdin, self._process.stdout
        if to_child is None or not isinstance(from_child, io.BufferedIOBase):
            return b"", 0
        with suppress(OSError):  # a broken pipe: it has ended, and may have said why
            to_child.write(request.encode() + b"\n")
            to_child.flush()
        with suppress(OSError):
            while True:
                line = from_child.readline(limits.MAX_REPLY_BYTES + 1)
                if not line[:-1].isdigit() or len(line) > 20 or not 0 < int(line) <= len(buffer):
                    return line, len(buffer)
                size = int(line)
                if from_child.readinto(buffer[:size]) != size:
                    break
                buffer = buffer[size:]
        return b"", len(buffer)
