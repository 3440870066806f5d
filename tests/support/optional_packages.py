"""Packages that only some tests need: their files are skipped where one is missing."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

OPTIONAL = frozenset(("onnx", "onnxruntime", "onnxscript"))


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
