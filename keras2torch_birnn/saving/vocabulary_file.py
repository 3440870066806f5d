"""``OUT.vocabulary.json``, a file beside OUT: the vocabularies of layers that were cut off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras2torch_birnn.saving.atomic import FileKind, NewFile

FORMAT = "keras2torch_birnn.vocabulary/1"
_START = f'{{\n "format": "{FORMAT}",\n'


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_START)) == _START.encode()


_KIND = FileKind("a file of vocabularies", (".json",), _is_ours)


def vocabulary_path(out: Path) -> Path:
    """Return the name of the file that belongs to ``out``."""
    return out.with_name(f"{out.name}.vocabulary.json")


def vocabulary_file(out: Path, layers: Sequence[dict[str, Any]]) -> NewFile:
    """Return the file to write beside ``out``."""
    text = json.dumps({"format": FORMAT, "layers": layers}, indent=1)

    def write(file: Path) -> None:
        file.write_text(f"{text}\n", encoding="utf-8")

    return NewFile(vocabulary_path(out), _KIND, write)


def remove_vocabularies(out: Path) -> None:
    """Remove the file that an earlier ``out`` had, if k2t wrote it; a link stays.

    Raises:
        OSError: it cannot be read or removed.
    """
    path = vocabulary_path(out)
    if path.is_file() and not path.is_symlink() and _is_ours(path):
        path.unlink()
