"""Exchange a member of a zip archive without touching the others.

The archive is our own copy of one that ``readers.containers.zip_archive`` has checked.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.readers.containers.files import file_window
from keras2torch_birnn.readers.containers.zip_archive import data_start
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.writers.copies import write_all

_PIECE = 1 << 20
# Positions in a local header, in an entry of the directory, and in the record at the end
_LOCAL_CRC, _LOCAL_BYTES = 14, 30
_ENTRY_CRC, _ENTRY_OFFSET, _ENTRY_BYTES = 16, 42, 46
_END_OFFSET = 16
_DESCRIPTOR, _DESCRIPTOR_SIGNATURE = 0x8, b"PK\x07\x08"
_ZIP64 = 0xFFFFFFFF
_ZIP64_FIELD = 1


def update_checksum(path: Path, name: str) -> None:
    """Compute the CRC-32 of a stored member again, after its bytes were replaced in place.

    Raises:
        InvalidModelFileError: the archive has its checksum in an unusual place.
    """
    with _Archive(path) as archive:
        member = archive.member(name)
        checksum = 0
        for piece in archive.pieces(member.start, member.info.compress_size):
            checksum = zlib.crc32(piece, checksum)
        for at in archive.checksums(member):
            archive.replace(at, struct.pack("<I", checksum), struct.pack("<I", member.info.CRC))


def exchange_member(path: Path, name: str, content: Path) -> None:
    """Replace the content of a member, compressed by the same method as before.

    What is behind it moves.

    Raises:
        InvalidModelFileError: an archive or member of 4 GiB or more, or unusual.
    """
    with _Archive(path) as archive:
        member = archive.member(name)
        end = member.start + member.info.compress_size
        tail = list(archive.pieces(end, archive.size - end))
        checksum, size, packed = archive.write_member(member, content)
        moved = packed - member.info.compress_size
        for piece in tail:
            archive.append(piece)
        archive.cut()
        if max(archive.size, size, member.info.file_size) >= _ZIP64:
            raise _unusual("4 GiB or more")
        facts = struct.pack("<III", checksum, packed, size)
        old = struct.pack("<III", member.info.CRC, member.info.compress_size, member.info.file_size)
        archive.update_local(member, facts, old, moved)
        archive.move_directory(member, facts, old, moved)


@dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    start: int  # of its data


class _Archive:
    """A zip archive that is open for changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opening = ExitStack()

    def __enter__(self) -> _Archive:
        with zipfile.ZipFile(self._path) as archive:
            self._infos = archive.infolist()
            self._directory = archive.start_dir
        file: BinaryIO = self._opening.enter_context(self._path.open("r+b", buffering=0))
        self._file, self._handle = file, file.fileno()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            os.fsync(self._handle)
        finally:
            self._opening.close()

    @property
    def size(self) -> int:
        return os.fstat(self._handle).st_size

    @property
    def _window(self) -> Window:
        return Window(self._file, 0, self.size)

    def member(self, name: str) -> _Member:
        info = next(one for one in self._infos if one.filename == name)
        return _Member(info, data_start(self._window, info))

    def pieces(self, start: int, size: int) -> Iterator[bytes]:
        for at in range(start, start + size, _PIECE):
            yield self._window.read(min(_PIECE, start + size - at), at)

    def append(self, data: bytes) -> None:
        write_all(self._handle, data)

    def cut(self) -> None:
        os.ftruncate(self._handle, os.lseek(self._handle, 0, os.SEEK_CUR))

    def replace(self, at: int, new: bytes, old: bytes) -> None:
        if self._window.read(len(old), at) != old:
            raise _unusual("other checksums or sizes than its directory")
        os.lseek(self._handle, at, os.SEEK_SET)
        write_all(self._handle, new)

    def checksums(self, member: _Member) -> list[int]:
        """Return every position of a member's checksum."""
        end = member.start + member.info.compress_size
        return [self._local(member, end), self._entry(member, self._directory) + _ENTRY_CRC]

    def _local(self, member: _Member, end: int) -> int:
        if not member.info.flag_bits & _DESCRIPTOR:
            return member.info.header_offset + _LOCAL_CRC
        signed = self._window.head(4, end) == _DESCRIPTOR_SIGNATURE
        return end + 4 * signed

    def _entry(self, member: _Member, directory: int) -> int:
        return dict(self._entries(directory))[member.info.header_offset]

    def _entries(self, directory: int) -> Iterator[tuple[int, int]]:
        """Yield the position of each member's header, and of its entry in the directory."""
        at = directory
        for info in self._infos:
            head = self._window.read(_ENTRY_BYTES, at)
            name, extra, comment = struct.unpack_from("<HHH", head, 28)
            yield info.header_offset, at
            at += _ENTRY_BYTES + name + extra + comment

    def write_member(self, member: _Member, content: Path) -> tuple[int, int, int]:
        """Write new content where the old one starts; return checksum, size, compressed size."""
        engine = zlib.compressobj(wbits=-15)
        stored = member.info.compress_type == zipfile.ZIP_STORED
        checksum, size = 0, 0
        os.lseek(self._handle, member.start, os.SEEK_SET)
        with ExitStack() as opening:
            window = file_window(opening, content)
            while size < window.size:
                piece = window.read(min(_PIECE, window.size - size), size)
                checksum, size = zlib.crc32(piece, checksum), size + len(piece)
                self.append(piece if stored else engine.compress(piece))
        if not stored:
            self.append(engine.flush())
        return checksum, size, os.lseek(self._handle, 0, os.SEEK_CUR) - member.start

    def update_local(self, member: _Member, facts: bytes, old: bytes, moved: int) -> None:
        """Update checksum and sizes before the data, or behind them."""
        if member.info.flag_bits & _DESCRIPTOR:
            end = member.start + member.info.compress_size + moved
            self.replace(self._local(member, end), facts, old)
            return
        at = member.info.header_offset
        head = self._window.read(_LOCAL_BYTES, at)
        packed, size, name, extra = struct.unpack_from("<IIHH", head, _LOCAL_CRC + 4)
        if (packed, size) != (_ZIP64, _ZIP64):
            self.replace(at + _LOCAL_CRC, facts, old)
            return
        self.replace(at + _LOCAL_CRC, facts[:4], old[:4])
        field = at + _LOCAL_BYTES + name
        new_sizes, old_sizes = (struct.unpack("<III", one) for one in (facts, old))
        start = struct.pack("<HH", _ZIP64_FIELD, 16)
        if extra < 20:
            raise _unusual("sizes that are not where they should be")
        self.replace(
            field,
            start + struct.pack("<QQ", new_sizes[2], new_sizes[1]),
            start + struct.pack("<QQ", old_sizes[2], old_sizes[1]),
        )

    def move_directory(self, member: _Member, facts: bytes, old: bytes, moved: int) -> None:
        """Update the directory, which moved, and the record at the end that points to it."""
        directory = self._directory + moved
        for header, at in list(self._entries(directory)):
            if header == member.info.header_offset:
                self.replace(at + _ENTRY_CRC, facts, old)
            elif header > member.info.header_offset:
                self.replace(
                    at + _ENTRY_OFFSET, struct.pack("<I", header + moved), struct.pack("<I", header)
                )
        *_, last = self._entries(directory)
        head = self._window.read(_ENTRY_BYTES, last[1])
        end = last[1] + _ENTRY_BYTES + sum(struct.unpack_from("<HHH", head, 28))
        self.replace(
            end + _END_OFFSET,
            struct.pack("<I", directory),
            struct.pack("<I", self._directory),
        )


def _unusual(what: str) -> InvalidModelFileError:
    return InvalidModelFileError(f"a zip archive with {what}", "save the model again")
