"""Extension of griffe: docstrings as the site shows them.

``BiLSTM``, ``BiGRU`` and ``BiRNN`` share one text that a decorator completes; mkdocstrings reads
source code alone. Pages, which docstrings name by their files, are links with their titles.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import griffe
from make_site import read_title

ROOT = Path(__file__).parents[1]


class SiteDocstrings(griffe.Extension):
    """Complete the docstring of each class that is decorated with ``_documented``; link all."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Change the docstring of a class, function or attribute."""
        if obj.docstring is None:
            return
        if any(one.callable_path.endswith("._documented") for one in _list_decorators(obj)):
            found = getattr(import_module(obj.module.path), obj.name)
            obj.docstring.value = inspect.getdoc(found)
        obj.docstring.value = link_pages(obj.docstring.value)


def _list_decorators(obj: Any) -> list[Any]:
    return list(getattr(obj, "decorators", ()))


def link_pages(text: str) -> str:
    """Turn names of pages into links with their titles, as the page ``api`` needs them."""

    def link(named: re.Match[str]) -> str:
        return f"[{read_title(ROOT / named[0])}](../{named[1]}/)"

    return re.sub(r"\b(docs/[\w-]+)\.md\b", link, text)
