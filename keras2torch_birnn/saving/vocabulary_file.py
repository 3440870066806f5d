"""The file beside OUT with the vocabularies of layers that were cut off: ``model.vocabulary.json``.

It is written before OUT, as OUT is: completely or not at all, and in the place of no file that k2t
did not write. If OUT then cannot be written, it goes again. It names its OUT: one that is left of a
model before goes with that model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from keras2torch_birnn.saving.atomic import (
    FileKind,
    check_replacing,
    is_stream,
    remove_file,
    write_atomically,
)

FORMAT = "keras2torch_birnn.vocabulary/1"
SUFFIX = ".vocabulary.json"
_START = 200  # bytes that hold the first key and its value


def vocabulary_path(out: Path) -> Path:
    """Return the name of the file that belongs to ``out``."""
    return out.with_name(f"{out.stem}{SUFFIX}")


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return json.dumps(FORMAT).encode() in file.read(_START)


VOCABULARIES = FileKind("a file of vocabularies", (".json",), _is_ours)


@contextmanager
def writing_vocabularies(
    out: Path, layers: Sequence[dict[str, Any]], *, overwrite: bool
) -> Iterator[Path | None]:
    """Write the layers' vocabularies beside ``out``, which the block writes; return the path.

    None, and nothing is written, if there are no layers or ``out`` is a stream. Without layers the
    file that ``out`` had goes once ``out`` is replaced.

    Raises:
        OutputError: it cannot be written or removed, or the file there must not be replaced.
    """
    if is_stream(out):
        yield None
        return
    path = vocabulary_path(out)
    if not layers:
        yield None
        if overwrite:
            remove_file(path, lambda file: _belongs_to(file, out))
        return
    check_replacing(path, VOCABULARIES, overwrite=overwrite)
    text = json.dumps({**_head(out), "layers": layers}, indent=1)
    is_new = not os.path.lexists(path)
    write_atomically(
        path, lambda file: _write(file, text), VOCABULARIES, overwrite=overwrite, size=len(text)
    )
    try:
        yield path
    except BaseException:
        if is_new:
            with suppress(OSError):
                path.unlink()
        raise


def _head(out: Path) -> dict[str, str]:
    return {"format": FORMAT, "out": out.name}


def _belongs_to(path: Path, out: Path) -> bool:
    """Tell whether k2t wrote this file for ``out``, and not for one with another suffix."""
    head = json.dumps(_head(out), indent=1).removesuffix("\n}").encode()
    with path.open("rb") as file:
        return file.read(len(head)) == head


def _write(file: Path, text: str) -> None:
    file.write_text(f"{text}\n", encoding="utf-8")
