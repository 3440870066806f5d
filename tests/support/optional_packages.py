"""Packages that only some tests need. ``K2T_WITHOUT="onnx matplotlib" pytest`` hides them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import pytest
import without_hypothesis

OPTIONAL = frozenset(("onnx", "onnxruntime", "onnxscript"))

_hidden: dict[str, Any] = dict.fromkeys(os.environ.get("K2T_WITHOUT", "").split())
sys.modules.update(_hidden)
if "hypothesis" in _hidden or not find_spec("hypothesis"):
    without_hypothesis.install()


class TestFile(pytest.Module):
    """A file of tests; skipped where an optional package that it imports is missing."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """Return the tests of the file."""
        try:
            return super().collect()
        except self.CollectError as error:
            cause = error.__cause__
            name = str(getattr(cause, "name", "")).partition(".")[0]
            if not isinstance(cause, ModuleNotFoundError) or name not in OPTIONAL:
                raise
            pytest.skip(f"{name} is not installed", allow_module_level=True)
