"""The target ``.onnx``: written by torch's exporter, run by ONNX Runtime or OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras2torch_birnn.errors import InvalidModelFileError, UnsupportedOptionError
from keras2torch_birnn.exporting.target import MARK, Session, Target
from keras2torch_birnn.limits import MAX_ONNX_BYTES
from keras2torch_birnn.readers.input_files import Window
from keras2torch_birnn.readers.tensorflow.object_graph import fields
from keras2torch_birnn.saving.atomic import FileKind
from keras2torch_birnn.spec import Array, ModelSpec

if TYPE_CHECKING:
    from torch import fx

_START = 64  # bytes that hold the first two fields of a file that k2t wrote
_PRODUCER_FIELD = 2  # ModelProto.producer_name

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


def is_ours(path: Path) -> bool:
    """Return whether k2t wrote a file, by the name of its producer at its start.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        start = Window(file, 0, os.fstat(file.fileno()).st_size).head(_START)
    try:
        for number, value in fields(memoryview(start)):
            if number == _PRODUCER_FIELD:
                return bytes(value) == MARK.encode() if isinstance(value, memoryview) else False
    except InvalidModelFileError:  # the end of what was read
        pass
    return False


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


def choose_runtime() -> str:
    """Return the first runtime that is installed; the first of all if none is."""
    return next(filter(is_installed, RUNTIMES), next(iter(RUNTIMES)))


class Onnx(Target):
    """ONNX."""

    kind = FileKind("an ONNX model", (".onnx",), is_ours)

    @property
    def runtime(self) -> str:
        """ONNX Runtime, or OpenVINO if only that is installed."""
        return choose_runtime()

    def why_cannot_write(self) -> str:
        """Return which package is missing."""
        for name in ("onnx", "onnxscript"):
            if find_spec(name) is None:
                return f"{name} is not installed"
        return ""

    def why_cannot_run(self) -> str:
        """Return that there is no runtime."""
        return "" if is_installed(self.runtime) else "onnxruntime is not installed"

    def write(self, model: fx.GraphModule, spec: ModelSpec, path: Path) -> tuple[str, ...]:
        """Write the graph and its weights to one file.

        Raises:
            UnsupportedLayerError, UnsupportedOptionError: what has no ONNX form; weights that no
                such file can hold.
        """
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        if size > MAX_ONNX_BYTES:
            raise UnsupportedOptionError(
                f"its weights take {size:,} bytes, one ONNX file holds at most {MAX_ONNX_BYTES:,}"
            )
        from keras2torch_birnn.exporting.onnx_graph import make_graph, save_graph

        save_graph(make_graph(model, spec), spec, path)
        return ()

    def open(self, path: Path) -> Session:
        """Open the file in the runtime."""
        return RUNTIMES[self.runtime].open(path)


TARGET = Onnx()
