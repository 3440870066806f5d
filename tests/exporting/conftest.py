"""Nothing here runs without the exporter and a runtime."""

from __future__ import annotations

import pytest

for _name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_name)
