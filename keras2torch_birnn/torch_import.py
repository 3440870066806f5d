"""Import torch, and report clearly if memory is too small: its import may even end the process."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from keras2torch_birnn.errors import UsageError

ADVICE = "raise its limit (ulimit -v), or free some"

# Messages of the system's loader, the C library, torch and Python where memory is missing.
_WORDS = re.compile(
    r"failed to map segment|(annot|can't) allocate|bad_alloc|not enough memory|"
    r"can't start new thread"
)
_PAGING_FILE_TOO_SMALL = 1455  # of Windows
_LEAST = 600 << 20  # bytes of address space; torch 2.13 for the CPU takes 650 MiB


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
    """Refuse to import torch where too little memory ends the process without an error.

    Raises:
        UsageError: there is too little memory.
    """
    if "torch" in sys.modules or sys.platform == "win32":
        return
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _LEAST:
        raise _too_little()


def _too_little() -> UsageError:
    return UsageError("not enough memory to load it", ADVICE, file="torch")


def limit_threads(count: int) -> None:
    """Import torch, and let it compute with this many threads."""
    with loading_torch():
        import torch

    torch.set_num_threads(count)
