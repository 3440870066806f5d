"""Nothing here runs without the exporter and a runtime, or with a torch that has none."""

from __future__ import annotations

import pytest

from keras2torch_birnn.exporting import onnx_file

for _name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_name)
if onnx_file.TARGET.why_cannot_write():
    pytest.skip(onnx_file.TARGET.why_cannot_write(), allow_module_level=True)
