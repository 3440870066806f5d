"""Files and folders of the input, opened once and read by position; JSON, read strictly.

Nothing is mapped into memory (a file that shrinks would then kill the process), and the file's own
position is never moved, so that the HDF5 parser's process can share the open file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError, in_place, invalid, printable
from keras2torch_birnn.limits import MAX_JSON_BYTES

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
    """Return a window, unless Git LFS has left a pointer where the file should be."""
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
    """Check that a folder can be looked into."""
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


# ---- JSON, read strictly: no repeated keys, no NaN, within limits --------------------------------


_VALUE_STARTS = re.compile(r"[\[{,]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _UnfitError(ValueError):
    """A value that JSON allows and we do not."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((repeated, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise _UnfitError(f"the key '{printable(repeated)}' occurs twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > limits.MAX_JSON_DIGITS:
        raise _UnfitError(f"an integer of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _UnfitError(f"the number {printable(digits)} is too large")
    return value


def _children(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _is_text(value: object) -> bool:
    # A lone surrogate ("\ud800") is no character; it would fail later, when printed or stored.
    return not isinstance(value, str) or _SURROGATE.search(value) is None


def _check_levels(root: object) -> None:
    level: list[object] = [root]
    for _ in range(limits.MAX_JSON_DEPTH):
        if not all(map(_is_text, level)):
            raise _UnfitError("a text holds half a character (a lone surrogate)")
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise _UnfitError(f"nested deeper than {limits.MAX_JSON_DEPTH} levels")


def _parse(text: str) -> Any:
    if len(_VALUE_STARTS.findall(text)) > limits.MAX_JSON_VALUES:
        raise _UnfitError(f"more than {limits.MAX_JSON_VALUES} values")
    value = json.loads(text, object_pairs_hook=_unique_keys, parse_int=_integer, parse_float=_float)
    _check_levels(value)
    return value


def decode_text(data: bytes, *, place: str) -> str:
    """Decode UTF-8 text; refuse anything else."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"not UTF-8 text (byte {error.start})", place) from None


def parse_json(text: str, *, place: str) -> Any:
    """Parse the JSON ``text`` found at ``place`` of a model file."""
    if len(text) > limits.MAX_JSON_BYTES:
        raise invalid(
            f"JSON of {len(text)} characters where {limits.MAX_JSON_BYTES} are allowed", place
        )
    try:
        return _parse(text)
    except _UnfitError as error:
        found = str(error)
    except json.JSONDecodeError as error:
        found = f"not JSON ({error.msg}, line {error.lineno} column {error.colno})"
    except RecursionError:
        found = f"nested deeper than {limits.MAX_JSON_DEPTH} levels"
    raise invalid(found, place)


def parse_object(text: str, *, place: str, needed: Iterable[str] = ()) -> dict[str, Any]:
    """Parse JSON that must be an object with the keys ``needed``."""
    value = parse_json(text, place=place)
    if not isinstance(value, dict):
        raise invalid(f"a JSON {type(value).__name__} where an object is expected", place)
    missing = [key for key in needed if key not in value]
    if missing:
        raise invalid(f"without {', '.join(missing)}", place)
    return value


def objects_in(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object in nested lists and objects, inner ones first."""
    if isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from objects_in(part)
    if isinstance(value, Mapping):
        yield value
