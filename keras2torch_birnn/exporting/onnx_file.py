"""The target ``.onnx``: written by torch's exporter, run by ONNX Runtime or OpenVINO."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from keras2torch_birnn.errors import InvalidModelFileError, UnsupportedOptionError
from keras2torch_birnn.exporting import onnx_runtimes
from keras2torch_birnn.exporting.target import MARK, Session, Target
from keras2torch_birnn.limits import MAX_ONNX_BYTES
from keras2torch_birnn.readers.input_files import Window
from keras2torch_birnn.readers.tensorflow.object_graph import fields
from keras2torch_birnn.saving.atomic import FileKind
from keras2torch_birnn.spec import ModelSpec

if TYPE_CHECKING:
    from torch import fx

_START = 64  # bytes that hold the first two fields of a file that k2t wrote
_PRODUCER_FIELD = 2  # ModelProto.producer_name


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


class Onnx(Target):
    """ONNX."""

    kind = FileKind("an ONNX model", (".onnx",), is_ours)

    @property
    def runtime(self) -> str:
        """ONNX Runtime, or OpenVINO if only that is installed."""
        return onnx_runtimes.choose()

    def why_cannot_write(self) -> str:
        """Return which package is missing."""
        for name in ("onnx", "onnxscript"):
            if find_spec(name) is None:
                return f"{name} is not installed"
        return ""

    def why_cannot_run(self) -> str:
        """Return that there is no runtime."""
        return "" if onnx_runtimes.is_installed(self.runtime) else "onnxruntime is not installed"

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
        return onnx_runtimes.RUNTIMES[self.runtime].open(path)


TARGET = Onnx()
