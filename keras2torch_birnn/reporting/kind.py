"""Recognise the reports that k2t wrote."""

from __future__ import annotations

from pathlib import Path

from keras2torch_birnn.saving.atomic import FileKind

MARK = "k2t verify"
_HEAD_BYTES = 1024  # of a page, which hold the mark


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return f'content="{MARK}"'.encode() in file.read(_HEAD_BYTES)


REPORT = FileKind("the report", (".html",), _is_ours)
