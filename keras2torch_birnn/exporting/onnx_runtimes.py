"""Runtimes of ONNX: each runs a file on inputs in the order of the file's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras2torch_birnn.exporting.target import Session
from keras2torch_birnn.spec import Array

# ONNX' names of types, in both runtimes' words -> NumPy's
DTYPES: Mapping[str, type] = {
    **dict.fromkeys(("tensor(float)", "f32"), np.float32),
    **dict.fromkeys(("tensor(double)", "f64"), np.float64),
    **dict.fromkeys(("tensor(uint8)", "u8"), np.uint8),
    **dict.fromkeys(("tensor(int8)", "i8"), np.int8),
    **dict.fromkeys(("tensor(int16)", "i16"), np.int16),
    **dict.fromkeys(("tensor(int32)", "i32"), np.int32),
    **dict.fromkeys(("tensor(int64)", "i64"), np.int64),
    **dict.fromkeys(("tensor(bool)", "boolean"), np.bool_),
}


class Runtime(NamedTuple):
    """A runtime: its package, and the function that opens a file in it."""

    package: str
    open: Callable[[Path], Session]


def in_onnxruntime(path: Path) -> Session:
    """Open a file in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.get_inputs()

    def run(inputs: Sequence[Array]) -> Sequence[Array]:
        pairs = zip(given, inputs, strict=True)
        feeds: Any = {one.name: np.asarray(x, DTYPES[one.type]) for one, x in pairs}
        return [np.asarray(y) for y in session.run(None, feeds)]

    return run


def in_openvino(path: Path) -> Session:
    """Open a file in OpenVINO on the CPU, in float32: it takes bfloat16 on some processors."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)

    def run(inputs: Sequence[Array]) -> Sequence[Array]:
        pairs = zip(compiled.inputs, inputs, strict=True)
        feeds: Any = [np.asarray(x, DTYPES[one.element_type.get_type_name()]) for one, x in pairs]
        found = compiled(feeds)
        return [np.array(found[place]) for place in range(len(compiled.outputs))]

    return run


RUNTIMES: Mapping[str, Runtime] = {
    "ONNX Runtime": Runtime("onnxruntime", in_onnxruntime),
    "OpenVINO": Runtime("openvino", in_openvino),
}


def is_installed(name: str) -> bool:
    """Return whether a runtime is installed."""
    return find_spec(RUNTIMES[name].package) is not None


def choose() -> str:
    """Return the first runtime that is installed; the first of all if none is."""
    return next(filter(is_installed, RUNTIMES), next(iter(RUNTIMES)))
