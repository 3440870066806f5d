"""Private copies of a model's files, in which bytes are replaced where the readers found them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from keras2torch_birnn.errors import InvalidModelFileError, in_place
from keras2torch_birnn.readers.containers.files import file_window
from keras2torch_birnn.readers.containers.members import Folder
from keras2torch_birnn.readers.files.window import JoinedWindows, Readable, Window

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


def spans(window: Readable, at: int, size: int) -> Iterator[tuple[BinaryIO, int, int]]:
    """Yield where these bytes of a window are: the open file, position in it, how many."""
    match window:
        case Window():
            part = window.part(at, size)
            yield part.file, part.offset, part.size
        case JoinedWindows():
            start = 0
            for one in window.parts:
                first, last = max(at, start), min(at + size, start + one.size)
                if first < last:
                    yield from spans(one, first - start, last - first)
                start += one.size
        case _:
            raise TypeError(f"a window of type {type(window).__name__}")


class FileCopies:
    """Open copies of files; ``place``: source file -> its copy, and what to add to positions."""

    def __init__(self, place: Callable[[BinaryIO], tuple[Path, int]]) -> None:
        self._place = place
        self._handles: dict[Path, int] = {}

    def put(self, window: Readable, at: int, data: bytes | memoryview) -> None:
        """Replace the bytes of the copy that are at ``at`` of a window of the source."""
        left = memoryview(data).cast("B")
        for file, position, count in spans(window, at, len(left)):
            path, shift = self._place(file)
            handle = self._handle(path)
            os.lseek(handle, position + shift, os.SEEK_SET)
            write_all(handle, left[:count])
            left = left[count:]

    def read(self, window: Readable, at: int, size: int) -> bytes:
        """Read bytes of the copy."""
        pieces: list[bytes] = []
        for file, position, count in spans(window, at, size):
            path, shift = self._place(file)
            handle = self._handle(path)
            os.lseek(handle, position + shift, os.SEEK_SET)
            while count:
                piece = os.read(handle, min(count, _PIECE))
                if not piece:
                    raise InvalidModelFileError("the copy is shorter than the file", "run again")
                pieces.append(piece)
                count -= len(piece)
        return b"".join(pieces)

    def _handle(self, path: Path) -> int:
        if path not in self._handles:
            self._handles[path] = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
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
