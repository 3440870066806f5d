"""The file beside OUT with the vocabularies of layers that were cut off: ``model.vocabulary.json``.

It is complete before OUT is written, and gets its name after OUT has its own, in the place of no
file that k2t did not write or that belongs to another OUT. If OUT cannot be written, nothing
changes. It names its OUT: one that is left of a model before goes with that model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras2torch_birnn.errors import OutputError, printable
from keras2torch_birnn.saving.atomic import FileKind, is_stream, remove_file, writing_after

FORMAT = "keras2torch_birnn.vocabulary/1"
SUFFIX = ".vocabulary.json"
_HEAD_BYTES = 4096  # bytes: a name of a file has at most 255 letters


def vocabulary_path(out: Path) -> Path:
    """Return the name of the file that belongs to ``out``."""
    return out.with_name(f"{out.stem}{SUFFIX}")


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
            remove_file(path, lambda file: _owner(file) == out.name)
        return
    text = json.dumps({"format": FORMAT, "out": out.name, "layers": layers}, indent=1)
    kind = FileKind("a file of vocabularies", (".json",), lambda file: _may_go(file, out))
    with writing_after(path, lambda file: _write(file, text), kind, overwrite=overwrite):
        yield path


def _may_go(path: Path, out: Path) -> bool:
    """Tell whether k2t wrote this file.

    Raises:
        OutputError: it belongs to another OUT, which is still there.
    """
    owner = _owner(path)
    if owner is not None and owner != out.name and path.with_name(owner).exists():
        raise OutputError(
            f"belongs to {printable(owner)}, which is beside it (--force does not replace it)",
            "name another output",
        )
    return owner is not None


def _owner(path: Path) -> str | None:
    """Return the name of the OUT for which k2t wrote this file; None if k2t did not write it."""
    start = json.dumps({"format": FORMAT, "out": ""}, indent=1).removesuffix('"\n}')
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).decode("utf-8", "replace")
    if not head.startswith(start):
        return None
    try:
        name = json.JSONDecoder().raw_decode(head, len(start) - 1)[0]
    except ValueError:
        return None
    return name if isinstance(name, str) and Path(name).name == name else None


def _write(file: Path, text: str) -> None:
    file.write_text(f"{text}\n", encoding="utf-8")
