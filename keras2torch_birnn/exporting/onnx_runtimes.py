"""Runtimes of ONNX: each runs a file on inputs in the order of the file's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras2torch_birnn.spec import Array

# ONNX' names of types, in both runtimes' words -> NumPy's
_DTYPES: Mapping[str, type] = {
    **dict.fromkeys(("tensor(float)", "f32"), np.float32),
    **dict.fromkeys(("tensor(double)", "f64"), np.float64),
    **dict.fromkeys(("tensor(int32)", "i32"), np.int32),
    **dict.fromkeys(("tensor(int64)", "i64"), np.int64),
    **dict.fromkeys(("tensor(bool)", "boolean"), np.bool_),
}


class Runtime(NamedTuple):
    """A runtime: its package, and the function that runs a file."""

    package: str
    run: Callable[[Path, Sequence[Array]], Sequence[Array]]


def in_onnxruntime(path: Path, inputs: Sequence[Array]) -> Sequence[Array]:
    """Run a file in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.get_inputs()
    feeds: dict[Any, Array] = {
        one.name: np.asarray(x, _DTYPES[one.type]) for one, x in zip(given, inputs, strict=True)
    }
    return [np.asarray(y) for y in session.run(None, feeds)]


def in_openvino(path: Path, inputs: Sequence[Array]) -> Sequence[Array]:
    """Run a file in OpenVINO on the CPU, in float32: it would take bfloat16 on some processors."""
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feeds: dict[Any, Array] = {
        place: np.asarray(x, _DTYPES[one.element_type.get_type_name()])
        for place, (one, x) in enumerate(zip(compiled.inputs, inputs, strict=True))
    }
    found = compiled(feeds)
    return [np.array(found[place]) for place in range(len(compiled.outputs))]


RUNTIMES: Mapping[str, Runtime] = {
    "ONNX Runtime": Runtime("onnxruntime", in_onnxruntime),
    "OpenVINO": Runtime("openvino", in_openvino),
}
FIRST = next(iter(RUNTIMES))


def why_missing(name: str) -> str:
    """Return that a runtime is not installed; empty if it is."""
    package = RUNTIMES[name].package
    return "" if find_spec(package) else f"{package} is not installed"


def run(path: Path, inputs: Sequence[Array], name: str) -> Sequence[Array]:
    """Run a file in a runtime."""
    return RUNTIMES[name].run(path, inputs)
