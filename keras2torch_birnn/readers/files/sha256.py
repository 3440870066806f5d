"""Hash files, block by block."""

from __future__ import annotations

import hashlib
from pathlib import Path

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
