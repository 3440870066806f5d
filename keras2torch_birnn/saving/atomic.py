"""Write a file completely or not at all: the old file stays until the new one is complete.

The new file is written under a temporary name in the same folder (``.k2t-*.tmp``), flushed to the
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

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


def marked_by(mark: str) -> Callable[[Path], bool]:
    """Make the function that recognises a file by a text near its beginning."""

    def recognises(path: Path) -> bool:
        with path.open("rb") as file:
            return mark.encode() in file.read(_HEAD_BYTES)

    return recognises


def check_output(
    path: Path, kind: FileKind | None = None, *, sources: Sequence[Path | None] = ()
) -> None:
    """Refuse a path that cannot be written to, before any work is done.

    ``sources``: the files and folders that the work reads.

    Raises:
        OutputError: a folder, a disk, a terminal, a missing folder, a suffix of another kind, or
            one of ``sources`` (also through links, or inside a folder).
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
        if target.exists():
            for source in sources:
                if source is not None and source.exists():
                    _check_source(target, source)
        if kind is not None and path.suffix.lower() not in kind.suffixes:
            found = f"ends in {printable(path.suffix)}" if path.suffix else "has no suffix"
            ends = " or ".join(filter(None, (", ".join(kind.suffixes[:-1]), kind.suffixes[-1])))
            more = kind.mistaken.get(path.suffix.lower())
            advice = f"{kind.name} ends in {ends}"
            raise OutputError(found, f"{advice}; {more}" if more else advice)
        if check_can_be_made(folder := target.parent) != folder:
            make = f"mkdir -p {shlex.quote(str(folder))}"
            raise OutputError(f"there is no folder {folder}", make)


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
    """Return the folder, or of one that is missing the nearest around it that exists.

    Raises:
        OutputError: it is a file, or not writable.
    """
    there = next((one for one in (folder, *folder.parents) if os.path.lexists(one)), folder)
    if not there.is_dir():
        raise OutputError(f"{there} is no folder", "choose another")
    if not os.access(there, os.W_OK):
        raise OutputError(f"the folder {there} is not writable", "choose another")
    return there


def check_replacing(path: Path, kind: FileKind | None = None, *, overwrite: bool) -> None:
    """Refuse to replace a file, unless ``overwrite`` is set and it is of the kind, or empty.

    Raises:
        OutputError: the file must not be replaced.
    """
    with in_file(path), os_errors():
        if not is_stream(path):
            _check_old(_resolve(path), kind, overwrite=overwrite)


def remove_file(path: Path, recognises: Callable[[Path], bool]) -> None:
    """Remove a regular file if it is recognised, and nothing else; a link stays.

    Raises:
        OutputError: it cannot be read or removed.
    """
    with in_file(path), os_errors():
        if path.is_file() and not path.is_symlink() and recognises(path):
            path.unlink()


def _check_old(target: Path, kind: FileKind | None, *, overwrite: bool) -> None:
    if not target.exists():
        return
    if kind is not None and target.stat().st_size and not kind.recognises(target):
        either = " (--force does not replace it, either)" if kind.instead == FORCE else ""
        raise OutputError(
            f"exists already, and k2t did not write it{either}",
            "remove it first, or name another output",
        )
    if not overwrite:
        raise _exists(kind)


def _exists(kind: FileKind | None) -> OutputError:
    return OutputError("exists already", FORCE if kind is None else kind.instead)


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


def _check_source(target: Path, source: Path) -> None:
    if target.exists() and target.samefile(source):
        raise OutputError("is the input itself", "name another output")
    if source.is_dir() and any(part.samefile(source) for part in target.parents):
        raise OutputError(f"is inside the input {source}", "name another output")


def _resolve(path: Path) -> Path:
    """Follow links: replacing a link itself would put a file in its place."""
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a zero byte in the name
        raise OutputError(f"is not a valid file name ({error})", "choose another") from None


@contextmanager
def os_errors() -> Iterator[None]:
    """Turn what the operating system refuses (a full disk, no permission) into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror or error})") from None


def write_atomically(
    path: Path,
    write: Callable[[Path], object],
    kind: FileKind | None = None,
    *,
    overwrite: bool,
) -> None:
    """Let ``write`` fill a temporary file in the same folder, then rename it to ``path``.

    A link is followed: its target is replaced. The mode is the old file's, or the umask's.
    ``kind``: the files that may be replaced, and their suffixes.

    Raises:
        OutputError: it could not be written; an old file is unchanged.
    """
    with writing_after(path, write, kind, overwrite=overwrite):
        pass


@contextmanager
def writing_after(
    path: Path, write: Callable[[Path], object], kind: FileKind | None, *, overwrite: bool
) -> Iterator[None]:
    """Let ``write`` fill a temporary file beside ``path``; rename it to ``path`` after the block.

    If the block fails, nothing has changed. The other arguments are those of ``write_atomically``.

    Raises:
        OutputError: it could not be written; an old file is unchanged.
    """
    with in_file(path), os_errors():
        check_output(path, kind)
        target, stream = _resolve(path), is_stream(path)
        if stream:
            _write_stream(path, write)
        else:
            _check_old(target, kind, overwrite=overwrite)
    if stream:
        yield
        return
    temporary = target.parent / f"{PREFIX}{secrets.token_hex(8)}.tmp"
    try:
        with in_file(path), os_errors():
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            os.close(handle)
            mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
            write(temporary)
            _sync_file(temporary, mode & 0o777)
        yield
        with in_file(path), os_errors():
            _check_old(target, kind, overwrite=overwrite)  # it may have appeared meanwhile
            _put_in_place(temporary, target, kind, overwrite=overwrite)
            _sync_folder(target.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def find_cause(error: Exception) -> BaseException:
    """Find the error that a library's writer hides: an OSError, or Ctrl-C."""
    found = error.__context__
    while found is not None:
        if isinstance(found, OSError) or not isinstance(found, Exception):
            return found
        found = found.__context__
    first = printable(str(error).strip().partition("\n")[0])
    return OutputError(f"cannot be written ({first})", "disk full?")


def _write_stream(target: Path, write: Callable[[Path], object]) -> None:
    """Write a complete file into a stream; what stdout has already stays before it."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        whole = Path(folder) / "out"
        write(whole)
        to_stdout = is_stdout(target)
        with (
            whole.open("rb") as source,
            os.fdopen(os.dup(1), "wb") if to_stdout else target.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink)


def _sync_file(path: Path, mode: int) -> None:
    """Set the file's mode (a library may have replaced the file), and flush it to the disk."""
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) != mode:
            path.chmod(mode)
        os.fsync(handle)
    finally:
        os.close(handle)


def _put_in_place(temporary: Path, target: Path, kind: FileKind | None, *, overwrite: bool) -> None:
    if overwrite:
        _replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # fails if the target was created meanwhile
    except FileExistsError:
        raise _exists(kind) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise _exists(kind) from None
        temporary.replace(target)


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
