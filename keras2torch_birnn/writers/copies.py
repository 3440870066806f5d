"""Private copies of a model's files, in which bytes are replaced where the readers found them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from keras2torch_birnn.errors import InvalidModelFileError, in_place
from keras2torch_birnn.readers.containers.files import file_window
from keras2torch_birnn.readers.containers.members import Folder
from keras2torch_birnn.readers.files.window import Readable, Window

_PIECE = 1 << 20


def copy_bytes(source: Window, target: Path) -> None:
    """Write the bytes of a window into a file that is new or empty.

    Raises:
        OSError: it cannot be written. InvalidModelFileError: the source became shorter.
    """
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        at = 0
        while at < source.size:
            piece = source.read(min(_PIECE, source.size - at), at)
            write_all(handle, piece)
            at += len(piece)
    finally:
        os.close(handle)


def write_all(handle: int, data: bytes | memoryview) -> None:
    """Write all of ``data`` at the position of an open file."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def copy_folder(source: Path, target: Path) -> None:
    """Copy all files below a folder into the empty folder ``target``.

    Raises:
        InvalidModelFileError: something in it is no ordinary file, or cannot be read.
    """
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_dir() and not path.is_symlink():
            (target / name).mkdir(exist_ok=True)
        else:
            copy_members(source, [name.as_posix()], target)


def copy_members(source: Path, names: Sequence[str], target: Path) -> None:
    """Copy these files of a folder into another one, under their names.

    Raises:
        InvalidModelFileError: one is a link, no ordinary file, or cannot be read.
    """
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opening, in_place(name):
            copy_bytes(Folder(source, opening).open(name), target / name)


def copy_file(source: Path, target: Path) -> None:
    """Copy a single file."""
    with ExitStack() as opening:
        copy_bytes(file_window(opening, source), target)


class FileCopies:
    """Open copies of files; ``place``: source file -> its copy, and what to add to positions."""

    def __init__(self, place: Callable[[BinaryIO], tuple[Path, int]]) -> None:
        self._place = place
        self._handles: dict[Path, int] = {}

    def put(self, window: Readable, at: int, data: bytes | memoryview) -> None:
        """Replace the bytes of the copy that are at ``at`` of a window of the source."""
        left = memoryview(data).cast("B")
        for piece in window.pieces(at, len(left)):
            write_all(self._handle_at(piece), left[: piece.size])
            left = left[piece.size :]

    def read(self, window: Readable, at: int, size: int) -> bytes:
        """Read bytes of the copy."""
        found: list[bytes] = []
        for piece in window.pieces(at, size):
            handle, left = self._handle_at(piece), piece.size
            while left:
                some = os.read(handle, min(left, _PIECE))
                if not some:
                    raise InvalidModelFileError("the copy is shorter than the file", "run again")
                found.append(some)
                left -= len(some)
        return b"".join(found)

    def _handle_at(self, piece: Window) -> int:
        """Return the open copy of a window's file, where the window begins."""
        path, shift = self._place(piece.file)
        if path not in self._handles:
            self._handles[path] = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        os.lseek(self._handles[path], piece.offset + shift, os.SEEK_SET)
        return self._handles[path]

    def close(self, *, sync: bool = True) -> None:
        """Flush the copies to the disk, unless ``sync`` is not set, and close them."""
        try:
            for handle in self._handles.values() if sync else ():
                os.fsync(handle)
        finally:
            for handle in self._handles.values():
                os.close(handle)
            self._handles.clear()
