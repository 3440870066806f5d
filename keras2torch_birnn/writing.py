"""Write a file whole or not at all. What was there before stays until the new one is complete."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from keras2torch_birnn.errors import OutputError, in_file


def check_output(path: Path, *, overwrite: bool, source: Path | None = None) -> None:
    """Refuse early, before any work, what cannot be written.

    Raises:
        OutputError: a folder, an existing file without ``overwrite``, a missing folder, or
            ``source`` itself (also through links).
    """
    with in_file(path):
        target = Path(os.path.realpath(path))
        if _is_special(path):
            return
        if target.is_dir():
            raise OutputError("is a folder", "name a file")
        if not target.parent.is_dir():
            raise OutputError(f"there is no folder {target.parent}", "make it first")
        if source is not None and target.exists() and source.exists():
            if target.samefile(source):
                raise OutputError("is the input itself", "name another output")
        if target.exists() and not overwrite:
            raise OutputError("exists already", "use --force to replace it")
        if not os.access(target.parent, os.W_OK):
            raise OutputError(f"the folder {target.parent} is not writable", "choose another")


def _is_special(path: Path) -> bool:
    """A pipe or a device, such as /dev/stdout: written to, never replaced."""
    with contextlib.suppress(OSError):
        return not stat.S_ISREG(path.stat().st_mode) and not path.is_dir()
    return False


def write_whole(path: Path, write: Callable[[Path], None], *, overwrite: bool) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step.

    A link is followed: its target is replaced. The mode is the old file's, or the umask's.

    Raises:
        OutputError: it could not be written; what was there before is unchanged.
    """
    with in_file(path):
        check_output(path, overwrite=overwrite)
        try:
            if _is_special(path):
                _pour(path, write)
            else:
                _replace(Path(os.path.realpath(path)), write, overwrite=overwrite)
        except OSError as error:
            raise OutputError(f"cannot be written ({error.strerror or error})") from None


def _pour(target: Path, write: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "out"
        write(whole)
        with whole.open("rb") as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)


def _replace(target: Path, write: Callable[[Path], None], *, overwrite: bool) -> None:
    with _temporary(target.parent) as temporary:
        write(temporary)
        temporary.chmod(_mode(target))
        _sync(temporary)
        if overwrite:
            temporary.replace(target)
        else:
            try:
                os.link(temporary, target)  # fails if somebody made the target meanwhile
            except FileExistsError:
                raise OutputError("exists already", "use --force to replace it") from None
            except OSError:  # a file system without hard links
                temporary.replace(target)
    _sync(target.parent)


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A name for a new file in the folder; whatever stands there at the end is removed."""
    path = folder / f".k2t-{secrets.token_hex(4)}.tmp"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _mode(target: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync(path: Path) -> None:
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
