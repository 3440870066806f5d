"""Write files completely or not at all: the old ones stay until the new ones are complete.

A new file is written under a temporary name in the same folder (``.k2t-*.tmp``), flushed to the
disk, and takes the target's name in one step. If anything fails before that step, the target is
unchanged and the temporary file is removed; only ``kill -9`` or a power failure leaves it behind.
"""

from __future__ import annotations

import errno
import os
import secrets
import shlex
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from keras2torch_birnn.errors import OutputError, in_file, printable, split_address

PREFIX = ".k2t-"
FORCE = "use --force to replace it"
_HEAD_BYTES = 2048  # of a file, which hold the mark of what wrote it
# Errors of ``os.link`` on file systems without hard links
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


@dataclass(frozen=True)
class FileKind:
    """Kind of file: its name in messages, its suffixes, and how its content is recognised.

    ``instead``: what to do if a file exists that must not be replaced. ``mistaken``: further advice
    for a path with the suffix of another kind that is easily taken for this one.
    """

    name: str
    suffixes: tuple[str, ...]
    recognises: Callable[[Path], bool]
    instead: str = FORCE
    mistaken: Mapping[str, str] = field(default_factory=dict)


class NewFile(NamedTuple):
    """A file to write: ``write`` fills the path that it is given."""

    path: Path
    kind: FileKind
    write: Callable[[Path], object]


def marked_by(mark: str) -> Callable[[Path], bool]:
    """Make the function that recognises a file by a text near its beginning."""

    def recognises(path: Path) -> bool:
        with path.open("rb") as file:
            return mark.encode() in file.read(_HEAD_BYTES)

    return recognises


# ---- what can be written to ----------------------------------------------------------------------


def check_output(
    path: Path,
    kind: FileKind | None = None,
    *,
    sources: Sequence[Path | None] = (),
    overwrite: bool | None = None,
) -> None:
    """Refuse a path that cannot be written to, before any work is done.

    ``sources``: the files and folders that the work reads. ``overwrite``: whether an old file of
    the kind may be replaced; None to leave that question for later.

    Raises:
        OutputError: a folder, a disk, a terminal, a missing folder, a suffix of another kind, one
            of ``sources`` (also through links, or inside a folder), or a file that must stay.
    """
    with in_file(path), os_errors():
        check_is_here(path, "file")
        if is_stream(path):
            if stat.S_ISBLK(path.stat().st_mode):
                raise OutputError("is a disk", "name a file")
            if is_stdout(path) and os.isatty(1):
                raise OutputError("is a terminal", "name a file, or redirect the output")
            return
        target = _resolve(path)
        if target.is_dir():
            raise OutputError("is a folder", "name a file")
        for source in sources:
            if source is None or not (target.exists() and source.exists()):
                continue
            if target.samefile(source):
                raise OutputError("is the input itself", "name another output")
            if source.is_dir() and any(part.samefile(source) for part in target.parents):
                raise OutputError(f"is inside the input {source}", "name another output")
        if kind is not None and path.suffix.lower() not in kind.suffixes:
            found = f"ends in {printable(path.suffix)}" if path.suffix else "has no suffix"
            ends = " or ".join(filter(None, (", ".join(kind.suffixes[:-1]), kind.suffixes[-1])))
            more = kind.mistaken.get(path.suffix.lower())
            advice = f"{kind.name} ends in {ends}"
            raise OutputError(found, f"{advice}; {more}" if more else advice)
        if check_can_be_made(folder := target.parent) != folder:
            make = f"mkdir -p {shlex.quote(str(folder))}"
            raise OutputError(f"there is no folder {folder}", make)
        if kind is not None and overwrite is not None:
            _check_old(target, kind, overwrite=overwrite)


def check_is_here(path: Path, kind: str) -> None:
    """Refuse a place to write that names nothing of this system. kind: "file" or "folder".

    Raises:
        OutputError: an address.
        OSError: an impossible name, which Python 3.14 otherwise takes for one that is free.
    """
    if split_address(path):
        raise OutputError("is an address", f"name a {kind} of this machine")
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):  # of a zero byte
        path.lstat()


def check_can_be_made(folder: Path) -> Path:
    """Return the folder, or of one that is missing the nearest around it that exists."""
    there = next((one for one in (folder, *folder.parents) if os.path.lexists(one)), folder)
    if not there.is_dir():
        raise OutputError(f"{there} is no folder", "choose another")
    if not os.access(there, os.W_OK):
        raise OutputError(f"the folder {there} is not writable", "choose another")
    return there


def is_stream(path: Path) -> bool:
    """Return whether ``path`` is a pipe, a device or /dev/stdout: written to, never replaced."""
    with suppress(OSError, ValueError):
        found = path.stat()
        return not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)) or is_stdout(path)
    return False


def is_stdout(path: Path) -> bool:
    """Return whether ``path`` is the file of standard output."""
    with suppress(OSError, ValueError):
        return os.path.samestat(path.stat(), os.fstat(1))
    return False


@contextmanager
def os_errors() -> Iterator[None]:
    """Turn what the operating system refuses (a full disk, no permission) into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror or error})") from None


def _resolve(path: Path) -> Path:
    """Follow links: replacing a link itself would put a file in its place."""
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a zero byte in the name
        raise OutputError(f"is not a valid file name ({error})", "choose another") from None


def _check_old(target: Path, kind: FileKind, *, overwrite: bool) -> None:
    if not target.exists():
        return
    if target.stat().st_size and not kind.recognises(target):
        either = " (--force does not replace it, either)" if kind.instead == FORCE else ""
        raise OutputError(
            f"exists already, and k2t did not write it{either}",
            "remove it first, or name another output",
        )
    if not overwrite:
        raise OutputError("exists already", kind.instead)


# ---- writing -------------------------------------------------------------------------------------


def write_atomically(*files: NewFile, overwrite: bool) -> None:
    """Fill a temporary file beside each path; when all are complete, give them their names.

    A link is followed: its target is replaced. The mode is the old file's, or the umask's. A stream
    is written to at once. ``overwrite``: whether old files of the kinds may be replaced.

    Raises:
        OutputError: one could not be written; old files are unchanged.
    """
    made: list[tuple[NewFile, Path, Path]] = []
    with ExitStack() as cleaning:
        for file in files:
            with in_file(file.path), os_errors():
                check_output(file.path, file.kind, overwrite=overwrite)
                if is_stream(file.path):
                    _write_stream(file)
                    continue
                target = _resolve(file.path)
                temporary = target.parent / f"{PREFIX}{secrets.token_hex(8)}.tmp"
                cleaning.callback(_remove, temporary)
                _fill(temporary, target, file.write)
                made.append((file, temporary, target))
        for file, _, target in made:
            with in_file(file.path), os_errors():
                _check_old(target, file.kind, overwrite=overwrite)  # it may have appeared meanwhile
        for file, temporary, target in made:
            with in_file(file.path), os_errors():
                if overwrite or not _link(temporary, target, file.kind):
                    _replace(temporary, target)
                _sync_folder(target.parent)


def _write_stream(file: NewFile) -> None:
    """Write a complete file into a stream; what stdout has already stays before it."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        whole = Path(folder) / "out"
        file.write(whole)
        to_stdout = is_stdout(file.path)
        with (
            whole.open("rb") as source,
            os.fdopen(os.dup(1), "wb") if to_stdout else file.path.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink)


def _fill(temporary: Path, target: Path, write: Callable[[Path], object]) -> None:
    """Make a new file, let ``write`` fill it, give it its mode and flush it to the disk."""
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode) & 0o777
    write(temporary)
    handle = os.open(temporary, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) != mode:  # or a library has replaced the file
            temporary.chmod(mode)
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(temporary: Path) -> None:
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, target: Path, kind: FileKind) -> bool:
    """Give a file a second name that no other has; return whether the file system has links."""
    try:
        os.link(temporary, target)
    except FileExistsError:  # it was created meanwhile
        raise OutputError("exists already", kind.instead) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def _replace(temporary: Path, target: Path) -> None:
    """Give a file the name of another.

    Windows refuses that while a program has the other open, as a virus scanner for a moment.
    """
    if sys.platform != "win32":
        temporary.replace(target)
        return
    for pause in (0, 0.1, 0.3, 0.6):
        time.sleep(pause)
        with suppress(PermissionError):
            temporary.replace(target)
            return
    raise OutputError(
        "cannot be replaced while a program has it open", "close it there, or name another output"
    )


def _sync_folder(folder: Path) -> None:
    """Flush the folder, so that the new name survives a power failure.

    Where that is not possible, a power failure may bring back the old file: nothing is lost.
    """
    with suppress(OSError):  # Windows opens no folders, some file systems do not sync them
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
