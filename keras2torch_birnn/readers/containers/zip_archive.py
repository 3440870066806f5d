"""Zip archives under strict checks, for every reader of one."""

from __future__ import annotations

import errno
import io
import os
import struct
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError, OutputError, invalid, printable
from keras2torch_birnn.readers.input_files import Window

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
_PIECE = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of name and extra field
_LOCAL_SIGNATURE = b"PK\x03\x04"
# The record at the end of a zip, and how far from the end of a file it may be: its length, and
# that of a comment.
_END_SIGNATURE, _END_BYTES = b"PK\x05\x06", 22 + 0xFFFF
# What ``zipfile`` raises on damaged archives
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(RuntimeError, ValueError, OverflowError, LookupError),
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


@contextmanager
def _refusing_broken_zips() -> Iterator[None]:
    """Turn errors of ``zipfile`` on damaged archives into our own."""
    try:
        yield
    except _BROKEN as error:
        if "not a zip file" in str(error):  # it began like one
            raise InvalidModelFileError(
                "a truncated zip archive (its directory, at the end, is missing)",
                "was the download or the copy complete?",
            ) from None
        reason = printable(" ".join(str(error).split()) or type(error).__name__)
        raise invalid(f"a damaged zip archive ({reason})") from None


@contextmanager
def open_archive(
    window: Window, most: int, most_members: int
) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """Open a zip archive after checks: few, distinct, unencrypted members without overlap.

    ``most``: bytes that are read at once, those of the directory and of stored members.
    """
    with _refusing_broken_zips():
        reader = WindowFile(window, most)
        with zipfile.ZipFile(cast(IO[bytes], reader)) as archive:
            members = archive.infolist()
            _check_members(members, most_members)
            _check_overlaps(window, members, archive.start_dir)
            yield archive, members


def open_model_archive(
    window: Window,
) -> AbstractContextManager[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """Open a zip archive with a model in it, as ``open_archive`` does."""
    return open_archive(window, limits.MAX_DIRECTORY_BYTES, limits.MAX_ARCHIVE_MEMBERS)


def ends_as_archive(window: Window) -> bool:
    """Tell whether the end of a file makes it a zip with members, whatever it begins with."""
    tail = window.head(_END_BYTES, max(0, window.size - _END_BYTES))
    if _END_SIGNATURE not in tail:
        return False
    try:
        with zipfile.ZipFile(
            cast(IO[bytes], WindowFile(window, limits.MAX_DIRECTORY_BYTES))
        ) as archive:
            return bool(archive.infolist())
    except InvalidModelFileError:  # a directory that is too large to be read
        return True
    except _BROKEN:
        return False


def _check_members(members: Sequence[zipfile.ZipInfo], most: int) -> None:
    if len(members) > most:
        raise invalid(f"an archive of {len(members)} members, more than {most}")
    name, times = Counter(m.filename for m in members).most_common(1)[0] if members else ("", 0)
    if times > 1:
        raise invalid(f"it is {times} times in the archive", name)
    for member in members:
        if member.flag_bits & _ENCRYPTED:
            raise invalid("encrypted", member.filename)
        if member.compress_type not in _METHODS:
            raise invalid(
                f"compressed by method {member.compress_type}; only stored and deflated are read",
                member.filename,
            )


def _check_overlaps(window: Window, members: Sequence[zipfile.ZipInfo], end: int) -> None:
    """Refuse a member that reaches into the next one or the directory.

    Not every Python that we run on checks this itself (CVE-2024-0450).
    """
    ordered = sorted(members, key=lambda member: member.header_offset)
    ends = [*(member.header_offset for member in ordered), end][1:]
    for member, limit in zip(ordered, ends, strict=True):
        if data_start(window, member) + member.compress_size > limit:
            raise invalid("it overlaps with what follows in the archive", member.filename)


def data_start(window: Window, member: zipfile.ZipInfo) -> int:
    """Return where a member's data begin, after its local header."""
    header = window.read(_LOCAL_HEADER.size, member.header_offset)
    signature, name, extra = _LOCAL_HEADER.unpack(header)
    if signature != _LOCAL_SIGNATURE:
        raise invalid("no member of the archive where one should be", member.filename)
    return int(member.header_offset + len(header) + name + extra)


class Budget:
    """Bytes that may still come out of the archive."""

    def __init__(self, most: int) -> None:
        self._left = self._most = most

    def spend(self, count: int, name: str) -> None:
        """Take ``count`` bytes for the member ``name``, or refuse."""
        self._left -= count
        if self._left < 0:
            raise invalid(f"it inflates to more than {self._most} bytes", name)


def member_pieces(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, budget: Budget
) -> Iterator[bytes]:
    """Yield a member's content; its CRC-32 has been checked when the last piece is out."""
    with archive.open(member) as content:
        while piece := content.read(_PIECE):
            budget.spend(len(piece), member.filename)
            yield piece


def open_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, budget: Budget, window: Window
) -> Window:
    """Return a member's content: a part of the archive, or of a nameless temporary file.

    Raises:
        InvalidModelFileError: damaged, or too large; OutputError: no room for the temporary file.
    """
    if member.compress_type == zipfile.ZIP_STORED:
        if member.compress_size != member.file_size:
            raise invalid(
                f"stored as it is, but of {member.compress_size} and of {member.file_size} bytes",
                member.filename,
            )
        for _ in member_pieces(archive, member, budget):
            pass  # reading it all checks its CRC-32, once
        return window.part(data_start(window, member), member.compress_size)
    return _inflated(archive, member, budget)


class _RemovedWhenClosed(io.FileIO):
    """A temporary file with a name, by which Windows hands it to another process.

    That of ``tempfile`` cannot be opened a second time there.
    """

    def __init__(self) -> None:
        handle, name = tempfile.mkstemp()
        os.close(handle)
        super().__init__(name, "r+")

    def close(self) -> None:
        """Close and remove the file."""
        if not self.closed:
            super().close()
            with suppress(OSError):
                Path(str(self.name)).unlink()


def _inflated(archive: zipfile.ZipFile, member: zipfile.ZipInfo, budget: Budget) -> Window:
    on_windows = sys.platform == "win32"
    made = _RemovedWhenClosed() if on_windows else tempfile.TemporaryFile(buffering=0)
    file = cast(BinaryIO, made)
    try:
        for piece in member_pieces(archive, member, budget):
            write_temporary(file, piece, member.filename)
        return Window(file, 0, file.tell())
    except BaseException:
        file.close()
        raise


def write_temporary(file: BinaryIO, piece: bytes, name: str) -> None:
    """Write what was inflated of ``name`` into a temporary file."""
    try:
        while piece:
            piece = piece[file.write(piece) :]
    except OSError as error:
        raise OutputError(
            f"cannot inflate {printable(name)} into a temporary file ({error.strerror})",
            "set TMPDIR to a folder with more space",
        ) from None
