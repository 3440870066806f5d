"""Input files: ordinary ones only, and an error if they change while they are read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from keras2torch_birnn.errors import InvalidModelFileError, invalid
from keras2torch_birnn.limits import MAX_JSON_BYTES
from keras2torch_birnn.readers.files.strict_json import decode_text
from keras2torch_birnn.readers.files.window import Window

_OTHER_FILES = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
INDEX = ".index"  # the end of the name of a TensorFlow checkpoint's index
_LFS = b"version https://git-lfs.github.com/spec/"
POINTER = ("a Git LFS pointer", "run git lfs pull")


def is_folder(path: Path) -> bool:
    """Tell whether the path is a folder; a name that no file can have is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):  # opening it will say so
        return False


def with_index(path: Path) -> Path:
    """Return the index of a checkpoint that is given by its prefix; any other path as it is."""
    if not path.name:  # the folder that one is in
        return path
    index = path.with_name(f"{path.name}{INDEX}")
    try:
        return index if not path.exists() and index.is_file() else path
    except (OSError, ValueError):  # opening it will say so
        return path


def file_window(opening: ExitStack, path: Path, *, member: bool = False) -> Window:
    """Open a file until ``opening`` ends; it must not change meanwhile.

    member: it is one of a folder, and must not be a link.
    """
    file = opening.enter_context(open_file(path, member=member))
    opening.enter_context(_refuse_changes(file))
    return not_a_pointer(Window(file, 0, os.fstat(file.fileno()).st_size))


def not_a_pointer(window: Window) -> Window:
    """Return a window, unless Git LFS has left a pointer where the file should be.

    Raises:
        InvalidModelFileError: it has.
    """
    if window.head(len(_LFS)) == _LFS:
        raise InvalidModelFileError(*POINTER)
    return window


def read_text(window: Window, place: str) -> str:
    """Read a whole window as UTF-8 text.

    Raises:
        InvalidModelFileError: too long, or not UTF-8.
    """
    if window.size > MAX_JSON_BYTES:
        raise invalid(f"longer than {MAX_JSON_BYTES} bytes", place)
    return decode_text(window.read(window.size), place=place)


def open_file(path: Path, *, member: bool = False) -> BinaryIO:
    """Open an ordinary file; a ``member`` of a folder must not be a link.

    Raises:
        InvalidModelFileError: a pipe, a device, a folder, or it cannot be opened.
    """
    try:
        _check_file(path.lstat() if member else path.stat())
        # A pipe that takes the file's place right now must not block us
        more = getattr(os, "O_NONBLOCK", 0) | (getattr(os, "O_NOFOLLOW", 0) if member else 0)
        file = open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | more))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        advice = ""
        if isinstance(error, FileNotFoundError) and not member:
            from keras2torch_birnn.suggestions import explain_missing

            advice = explain_missing(path)
        raise InvalidModelFileError(f"cannot be opened ({reason})", advice) from None
    try:
        _check_file(os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def check_folder(path: Path) -> None:
    """Check that a folder can be looked into.

    Raises:
        InvalidModelFileError: it cannot be opened.
    """
    try:
        with os.scandir(path):
            (path / ".").stat()
    except OSError as error:
        raise InvalidModelFileError(f"cannot be opened ({error.strerror})") from None


def _check_file(facts: os.stat_result) -> None:
    if stat.S_ISREG(facts.st_mode):
        return
    if stat.S_ISDIR(facts.st_mode):
        raise InvalidModelFileError("a folder", "the input must be a file")
    what = next((name for test, name in _OTHER_FILES if test(facts.st_mode)), "no ordinary file")
    raise InvalidModelFileError(what, "the input must be a file")


@contextmanager
def _refuse_changes(file: BinaryIO) -> Iterator[None]:
    """Raise at the end, after no other error, if the file has changed meanwhile."""
    before = _state(file)
    yield
    if _state(file) != before:
        raise InvalidModelFileError(
            "the file changed while it was read", "run again when it is complete"
        )


def _state(file: BinaryIO) -> tuple[int, int, int]:
    facts = os.fstat(file.fileno())
    return facts.st_size, facts.st_mtime_ns, facts.st_ino
