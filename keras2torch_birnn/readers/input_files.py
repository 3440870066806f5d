"""Files and folders of the input, opened once and read by position.

Nothing is mapped into memory (a file that shrinks would then kill the process), and the file's own
position is never moved, so that the HDF5 parser's process can share the open file.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from keras2torch_birnn.errors import InvalidModelFileError, in_place, invalid, printable
from keras2torch_birnn.limits import MAX_JSON_BYTES
from keras2torch_birnn.readers.strict_json import decode_text

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


_PIECE = 16 << 20


def _read_some(file: BinaryIO, count: int, at: int) -> bytes:
    if sys.platform != "win32" and hasattr(os, "pread"):
        return os.pread(file.fileno(), count, at)
    file.seek(at)  # Windows
    return file.read(count)


@dataclass(frozen=True)
class Window:
    """``size`` bytes of ``file`` from ``offset`` on; positions count from ``offset``."""

    file: BinaryIO
    offset: int
    size: int

    def part(self, at: int, size: int) -> Window:
        """Return the window of ``size`` bytes at ``at``, inside this one."""
        if at < 0 or size < 0 or at + size > self.size:
            raise InvalidModelFileError(
                f"bytes {at} to {at + size} are needed, but there are {self.size}",
                "truncated file?",
            )
        return Window(self.file, self.offset + at, size)

    def head(self, count: int, at: int = 0) -> bytes:
        """Read up to ``count`` bytes from ``at`` on."""
        count = max(0, min(count, self.size - at))
        return _read_some(self.file, count, self.offset + at) if count else b""

    def read_into(self, buffer: memoryview, at: int = 0) -> None:
        """Fill ``buffer`` with the bytes from ``at`` on."""
        part, done = self.part(at, len(buffer)), 0
        while done < len(buffer):
            wanted = min(_PIECE, len(buffer) - done)
            piece = _read_some(self.file, wanted, part.offset + done)
            if not piece:
                raise InvalidModelFileError(
                    "the file became shorter while it was read", "run again when it is complete"
                )
            buffer[done : done + len(piece)] = piece
            done += len(piece)

    def read(self, count: int, at: int = 0) -> bytes:
        """Read exactly ``count`` bytes from ``at`` on."""
        self.part(at, count)
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), at)
        return bytes(buffer)


@dataclass(frozen=True)
class JoinedWindows:
    """Windows one after another, as if they were one."""

    parts: tuple[Window, ...]

    @property
    def size(self) -> int:
        """The number of bytes of all parts."""
        return sum(part.size for part in self.parts)

    def read_into(self, buffer: memoryview, at: int = 0) -> None:
        """Fill ``buffer`` with the bytes from ``at`` on.

        Raises:
            InvalidModelFileError: there are fewer.
        """
        done = start = 0
        for part in self.parts:
            first = at + done - start
            if 0 <= first < part.size and done < len(buffer):
                piece = buffer[done : done + part.size - first]
                part.read_into(piece, first)
                done += len(piece)
            start += part.size
        if done < len(buffer):
            raise InvalidModelFileError(
                f"bytes {at} to {at + len(buffer)} are needed, but there are {self.size}",
                "truncated file?",
            )


class WindowFile(io.RawIOBase):
    """A window as a read-only file for code that wants one; reads ``most`` bytes at once."""

    def __init__(self, window: Window, most: int) -> None:
        super().__init__()
        self._window, self._most, self._at = window, most, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position, as in any file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._window.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "negative seek position")
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes; refuse to read more than ``most`` at once."""
        left = max(0, self._window.size - self._at)
        size = left if size < 0 else min(size, left)
        if size > self._most:
            raise invalid(f"a block of {size} bytes where {self._most} are allowed")
        data = self._window.head(size, self._at)
        self._at += len(data)
        return data

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read into ``buffer``."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


# ---- opening -------------------------------------------------------------------------------------


# Input files: ordinary ones only, and an error if they change while they are read.


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


# ---- members of a folder -------------------------------------------------------------------------


# Files of a folder by their names below it: nothing outside it is opened, no link is followed.


_FORBIDDEN = ("\\", ":", "\0")


@dataclass(frozen=True)
class Folder:
    """A folder on disk. Files stay open until ``opening`` ends and must not change meanwhile."""

    path: Path
    opening: ExitStack

    def holds(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        try:
            return (self.path / name).is_file()
        except (OSError, ValueError):
            return False

    def open(self, name: str) -> Window:
        """Open a file."""
        check_name(name)
        with in_place(name):
            *folders, _ = Path(name).parts
            for count in range(1, len(folders) + 1):
                self._check_folder(self.path.joinpath(*folders[:count]))
            return file_window(self.opening, self.path / name, member=True)

    def _check_folder(self, path: Path) -> None:
        try:
            is_link = stat.S_ISLNK(path.lstat().st_mode)
        except OSError as error:
            raise InvalidModelFileError(f"cannot be opened ({error.strerror})") from None
        if is_link:
            raise InvalidModelFileError("in a folder that is a link", "give the folder itself")


def check_name(name: str) -> None:
    """Refuse a name that a file may have outside of the folder.

    Raises:
        InvalidModelFileError: absolute, with ``..``, or with marks of other systems.
    """
    parts = name.split("/")
    if any(mark in name for mark in _FORBIDDEN) or any(p in ("", ".", "..") for p in parts):
        raise invalid(f"{printable(name)} is no name of a file in the folder")


# ---- checksums -----------------------------------------------------------------------------------


# Hash files, block by block.


_BLOCK = 1 << 20


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits.

    Raises:
        OSError: it is a folder, or cannot be read.
    """
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
