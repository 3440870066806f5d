"""Extension of griffe: the site shows docstrings that a decorator completes, as they are then.

``BiLSTM``, ``BiGRU`` and ``BiRNN`` share one text; mkdocstrings reads source code alone.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import griffe


class RuntimeDocstrings(griffe.Extension):
    """Replace the docstring of each class that is decorated with ``_documented``."""

    def on_class_instance(self, *, cls: Any, **_: Any) -> None:
        """Take the docstring from the imported class."""
        if any(decorator.callable_path.endswith("._documented") for decorator in cls.decorators):
            found = getattr(import_module(cls.module.path), cls.name)
            cls.docstring.value = inspect.getdoc(found)
