"""The file of the kernel's library: its place, the check against the sources, how to build it."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from keras2torch_birnn.rnn.native.sources import source_hash

FOLDER = Path(__file__).parent
NAME = "libk2t.dll" if sys.platform == "win32" else "libk2t.so"


class NoKernelError(Exception):
    """Why there is no native kernel (``message``), and how to get one (``advice``)."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(f"{message}; {advice}")
        self.message, self.advice = message, advice


def load(folder: Path = FOLDER) -> ctypes.CDLL:
    """Load the library of ``folder``, a copy of this one.

    Raises:
        NoKernelError: it does not exist, does not fit this system, or is not of these sources.
    """
    file = folder / NAME
    if not file.exists():
        raise _not_built(folder)
    try:
        found = ctypes.CDLL(str(file))
    except OSError as error:
        raise NoKernelError(f"it cannot be loaded: {error}", advise_build(folder)) from None
    wanted = source_hash(folder)
    # Python without sources beside it came together with the library: an installer put both there.
    if wanted is not None and _built_from(found) != wanted:
        raise NoKernelError(f"{file} was built from other sources", advise_build(folder))
    return found


def _built_from(library: ctypes.CDLL) -> int | None:
    """Return the hash of the library's sources; None if the library is too old to have it."""
    try:
        tell = library.k2t_source_hash
    except AttributeError:
        return None
    tell.argtypes, tell.restype = (), ctypes.c_uint64
    found: int = tell()
    return found


def _not_built(folder: Path) -> NoKernelError:
    """Return the error of a missing library; name an installed copy of the package that has one.

    Python prefers the folder it is started in to an installed package.
    """
    package = folder.parents[1]
    where = f"{package} was imported, where it was not built"
    elsewhere = _elsewhere(folder)
    if elsewhere is None:
        return NoKernelError(f"{where} (was there a C++ compiler?)", advise_build(folder))
    return NoKernelError(
        f"{where}; it was in {elsewhere}",
        f"start Python in another folder than {package.parent}, or {advise_build(folder)}",
    )


def _elsewhere(folder: Path) -> Path | None:
    """Return the first other copy of the package on Python's path that has a library."""
    inside = folder.relative_to(folder.parents[2])
    for entry in sys.path:
        other = Path(entry).absolute() / inside
        if other != folder.absolute() and (other / NAME).exists():
            return other.parents[1]
    return None


def advise_build(folder: Path = FOLDER) -> str:
    """Return the command that builds the library of ``folder``, a clone or an installed package."""
    root = folder.parents[2]
    if (root / "setup.py").exists():
        return f"build it: pip install -e {root}"
    return "install keras2torch_birnn again, with --force-reinstall --no-deps"
