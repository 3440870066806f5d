"""Recognise the reports that k2t wrote."""

from __future__ import annotations

from keras2torch_birnn.saving.atomic import FileKind, marked_by

MARK = "k2t verify"

REPORT = FileKind("the report", (".html",), marked_by(f'content="{MARK}"'), instead="name another")
