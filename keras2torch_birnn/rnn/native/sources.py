"""Compiler options of all of the kernel's sources, and the hash that the library carries.

It imports nothing of the package: ``setup.py`` runs this file before there is one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

# -O2 -g0 -fno-wrapv: with Python's own -O3 -g -fwrapv, GCC takes minutes over the unrolled products
# and makes nothing faster.
# -Werror=switch: a number of codes.h that a switch lacks would end the program that meets it.
COMMON = [
    *"-std=c++17 -O2 -g0 -fno-wrapv -fPIC -fvisibility=hidden -pthread -Wall -Wextra".split(),
    "-Werror=switch",
]


def source_hash(folder: Path) -> int | None:
    """Return 64 bits that change with the C++ files of ``folder``, this one and ``processors.py``.

    None where there are no C++ files.
    """
    files = sorted(file for end in ("*.h", "*.cpp") for file in folder.glob(end))
    if not files:
        return None
    found = hashlib.sha256()
    for file in (*files, folder / "processors.py", folder / "sources.py"):
        text = file.read_bytes()
        found.update(f"{file.name}\0{len(text)}\0".encode())
        found.update(text)
    return int.from_bytes(found.digest()[:8], "little")
