"""Windows on open files, read by position: the only access to the bytes of the input.

Nothing is mapped into memory (a file that shrinks would then kill the process), and the file's own
position is never moved, so that the HDF5 parser's process can share the open file.
"""

from __future__ import annotations

import errno
import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from keras2torch_birnn.errors import InvalidModelFileError, invalid

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE = 16 << 20


def _read_some(file: BinaryIO, count: int, at: int) -> bytes:
    if hasattr(os, "pread"):
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
