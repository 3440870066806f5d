"""Run the notebooks of ``docs/gallery`` and record what they print: ``python tools/gallery.py``.

Cells print text only, so that a notebook runs as plain Python, in a test, too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
NOTEBOOKS = tuple(sorted(GALLERY.glob("*.ipynb")))


def read(notebook: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(notebook.read_text("utf-8"))
    return content


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def printed(cell: dict[str, Any]) -> str:
    """Return what a cell printed when it was recorded."""
    return "".join(line for output in cell["outputs"] for line in output["text"])


def run(notebook: Path) -> list[str]:
    """Run all cells of code in the gallery's folder; return what each prints."""
    names: dict[str, Any] = {"__name__": "__main__"}
    texts = []
    before = Path.cwd()
    os.chdir(GALLERY)
    try:
        for cell in read(notebook)["cells"]:
            if cell["cell_type"] == "code":
                shown = io.StringIO()
                with contextlib.redirect_stdout(shown):
                    exec(compile(source(cell), notebook.name, "exec"), names)
                texts.append(shown.getvalue())
    finally:
        os.chdir(before)
    return texts


def record(notebook: Path) -> None:
    """Run a notebook and write its outputs into it."""
    content, texts = read(notebook), run(notebook)
    codes = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    for number, (cell, text) in enumerate(zip(codes, texts, strict=True), 1):
        lines = text.splitlines(keepends=True)
        cell["execution_count"] = number
        cell["outputs"] = (
            [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
        )
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for one in NOTEBOOKS:
        record(one)
