"""Leave out the tests of ONNX without its packages, or with a torch whose exporter is too old."""

from __future__ import annotations

from importlib.util import find_spec

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
