"""Import torch, and report clearly if memory is too small: its import may even end the process."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keras2torch_birnn.errors import UsageError

ADVICE = "raise its limit (ulimit -v), or free some"

# Messages of the system's loader, the C library, torch and Python where memory is missing.
_WORDS = re.compile(
    r"failed to map segment|(annot|can't) allocate|bad_alloc|not enough memory|"
    r"can't start new thread"
)
_PAGING_FILE_TOO_SMALL = 1455  # of Windows
_LIBRARIES = ("libtorch_cpu.so", "libtorch_python.so")
_PYTHON_PART = 128 << 20  # lower bound of what the import needs besides its libraries


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error means that memory is missing; libraries word it in many ways."""
    if getattr(error, "winerror", None) == _PAGING_FILE_TOO_SMALL:  # in the system's language
        return True
    return isinstance(error, MemoryError) or _WORDS.search(str(error)) is not None


@contextmanager
def loading_torch() -> Iterator[None]:
    """Turn failures of torch's import that are due to too little memory into a UsageError.

    Raises:
        UsageError: there is too little memory.
    """
    check_room()
    try:
        yield
    except Exception as error:
        # Extensions that cannot allocate their own error end in a SystemError.
        if not (lacks_memory(error) or isinstance(error, SystemError)):
            raise
        raise _too_little() from error


def check_room() -> None:
    """Refuse to import torch if too little memory would end the process.

    Raises:
        UsageError: there is too little memory.
    """
    if "torch" not in sys.modules and _room() < _needed():
        raise _too_little()


def _too_little() -> UsageError:
    return UsageError("not enough memory to load it", ADVICE, file="torch")


def _room() -> float:
    """Return the bytes of address space that this process may still use."""
    if sys.platform == "win32":
        return float("inf")
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return float("inf") if limit == resource.RLIM_INFINITY else limit - _mapped()


def _mapped() -> int:
    if sys.platform == "win32":
        return 0
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):  # not Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _needed() -> int:
    """Return the bytes of address space below which torch ends the process without an error."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return 0
    files = [Path(found.origin).parent / "lib" / name for name in _LIBRARIES]
    return _PYTHON_PART + sum(file.stat().st_size for file in files if file.is_file())


def limit_threads(count: int) -> None:
    """Import torch, and let it compute with this many threads."""
    with loading_torch():
        import torch

    torch.set_num_threads(count)
