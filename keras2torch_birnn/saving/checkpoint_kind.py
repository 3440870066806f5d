"""Recognise checkpoints, the files that k2t writes, by suffix and content.

Recognising a file runs none of its code and reads little: the table of a zip and the first strings
of its ``data.pkl``, or the header of safetensors. It needs no torch.
"""

from __future__ import annotations

import json
import os
import pickletools
from collections.abc import Iterator
from pathlib import Path

from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.limits import MAX_OUT_MEMBERS, MAX_PROGRAM_BYTES
from keras2torch_birnn.readers.containers.zip_archive import open_archive
from keras2torch_birnn.readers.input_files import Window
from keras2torch_birnn.saving.atomic import FileKind

FORMAT = "keras2torch_birnn/2"
_FORMATS = "keras2torch_birnn/"  # of every version
_START = 256  # bytes of data.pkl that hold its first key and value


def is_checkpoint(path: Path) -> bool:
    """Return whether k2t wrote the file, judged by its content.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            window = Window(file, 0, os.fstat(file.fileno()).st_size)
            zipped = window.head(2) == b"PK"
            return (_read_torch_format if zipped else read_safetensors_format)(window).startswith(
                _FORMATS
            )
    except InvalidModelFileError:
        return False


def _read_torch_format(window: Window) -> str:
    """Read the value of "format", the first key of the dict in a ``.pt`` file."""
    with open_archive(window, MAX_PROGRAM_BYTES, MAX_OUT_MEMBERS) as (archive, members):
        program = next((m for m in members if m.filename.endswith("/data.pkl")), None)
        if program is None:
            return ""
        with archive.open(program) as content:
            found = _find_strings(content.read(_START))
            key, value = next(found, ""), next(found, "")
    return value if key == "format" else ""


def _find_strings(program: bytes) -> Iterator[str]:
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "BINUNICODE":
                yield str(argument)
    except ValueError:  # the end of what was read
        return


def read_safetensors_format(window: Window) -> str:
    """Return the value of "format" in a header of safetensors; empty if there is none."""
    size = int.from_bytes(window.head(8), "little")
    if not 0 < size <= min(MAX_PROGRAM_BYTES, window.size - 8):
        return ""
    try:
        header = json.loads(window.read(size, 8))
    except (ValueError, RecursionError):
        return ""
    texts = header.get("__metadata__") if isinstance(header, dict) else None
    return str(texts.get("format")) if isinstance(texts, dict) else ""


_MANY = "to convert many models: k2t convert MODEL... --out-dir DIR"
CHECKPOINT = FileKind(
    "OUT",
    (".pt", ".pth", ".safetensors"),
    is_checkpoint,
    mistaken={
        **dict.fromkeys((".h5", ".hdf5", ".keras"), _MANY),
        **dict.fromkeys((".onnx", ".pt2", ".py"), "to export: k2t export MODEL TARGET"),
    },
)
