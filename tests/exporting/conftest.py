"""Leave out the tests of ONNX without its packages, or with a torch whose exporter is too old."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import pytest

from keras2torch_birnn.exporting import onnx_file

collect_ignore = (
    [
        "test_export_command.py",
        "test_onnx_models.py",
        "test_onnx_operators.py",
        "test_onnx_recurrent.py",
    ]
    if onnx_file.TARGET.why_cannot_write() or find_spec("onnxruntime") is None
    else []
)


@pytest.fixture(autouse=True, scope="session")
def _one_table_of_operators() -> Iterator[None]:
    """Build the operators of torch's exporter once, not in each export."""
    if onnx_file.TARGET.why_cannot_write():
        yield
        return
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    build = functools.cache(ONNXRegistry.from_torchlib)

    def copied(*arguments: Any, **options: Any) -> Any:
        registry = copy.copy(build(*arguments, **options))
        registry.functions = {target: [*rows] for target, rows in registry.functions.items()}
        return registry

    with patch.object(ONNXRegistry, "from_torchlib", staticmethod(copied)):
        yield
