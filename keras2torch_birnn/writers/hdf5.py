"""Change HDF5 files: arrays in place where their bytes keep their length, else by the HDF5 library.

A chunk that was compressed has another length when its values change, and the library has to find
room for it. It runs in a process of its own, because it crashes on damaged files.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import keras2torch_birnn
from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.readers.hdf5.arrays import (
    FLETCHER32,
    GZIP,
    SHUFFLE,
    STORED_DTYPES,
    Chunked,
    Contiguous,
    StoredArray,
    fletcher32,
    unfilter,
)
from keras2torch_birnn.readers.hdf5.parser_process import import_roots, isolated_environment
from keras2torch_birnn.spec import Array
from keras2torch_birnn.writers.copies import FileCopies, write_all
from keras2torch_birnn.writers.new_values import Piece

_SCRIPT = Path(__file__).with_name("hdf5_child.py")


def keeps_length(array: StoredArray) -> bool:
    """Tell whether new values of an array take exactly the bytes of the old ones."""
    layout = array.layout
    if isinstance(layout, Chunked):
        return GZIP not in layout.filters
    return isinstance(layout, Contiguous)


@dataclass
class LibraryEdits:
    """Changes of one file that the HDF5 library has to make.

    ``values``: arrays with their new values, by path. ``remove``: groups.
    """

    values: dict[str, tuple[StoredArray, Array]] = field(default_factory=dict)
    remove: list[str] = field(default_factory=list)


def put_in_place(copies: FileCopies, piece: Piece) -> bool:
    """Write new values into the copy; False if that is left to the library."""
    array = piece.array
    layout = array.layout
    if isinstance(layout, Contiguous):
        item = piece.values.dtype.itemsize
        data = np.ascontiguousarray(piece.values)
        copies.put(array.window, layout.offset + piece.start * item, data.view(np.uint8).data)
    elif isinstance(layout, Chunked) and keeps_length(array):
        _put_chunks(copies, array, layout, piece.values.reshape(array.shape))
    else:
        return False
    return True


def _put_chunks(copies: FileCopies, array: StoredArray, layout: Chunked, values: Array) -> None:
    """Write chunks that are not compressed; keep the values of a chunk beyond the array."""
    item = values.dtype.itemsize
    count = math.prod(layout.chunk) * item
    for chunk in layout.chunks:
        filters = layout.filters_of(chunk)
        raw = array.window.read(chunk.stored, chunk.offset)
        block = np.frombuffer(unfilter(raw, filters, count, item), values.dtype)
        block = block.reshape(layout.chunk).copy()
        place = chunk.region(layout.chunk, array.shape)
        inside = tuple(slice(last - first) for first, last in place)
        block[inside] = values[tuple(slice(first, last) for first, last in place)]
        data = block.tobytes()
        for code in filters:
            data = _FILTERS[code](data, item)
        if data != raw:
            copies.put(array.window, chunk.offset, data)


def _shuffle(data: bytes, item: int) -> bytes:
    whole = len(data) // item * item
    planes = np.frombuffer(data, np.uint8, count=whole).reshape(-1, item)
    return planes.T.tobytes() + data[whole:]


def _add_fletcher32(data: bytes, item: int) -> bytes:
    # The library writes 65535 for a sum of 0 that is not that of zeros alone
    high, low = (one or 65535 * bool(any(data)) for one in fletcher32(data))
    return data + (high << 16 | low).to_bytes(4, "little")


_FILTERS = {SHUFFLE: _shuffle, FLETCHER32: _add_fletcher32}


def apply_edits(path: Path, edits: LibraryEdits) -> None:
    """Let the HDF5 library change a file of our own.

    Raises:
        InvalidModelFileError: the library does not manage it.
    """
    if sys.platform == "win32":  # which cannot hand over open files by their numbers
        raise InvalidModelFileError(
            "its compressed arrays cannot be written on Windows", "use another system"
        )
    with tempfile.TemporaryFile(buffering=0) as data, path.open("r+b", buffering=0) as file:
        described, total = _write_values(data.fileno(), edits)
        job = {
            "fd": file.fileno(),
            "data": data.fileno(),
            "remove": edits.remove,
            "edits": described,
            "import_from": [*import_roots(), str(Path(keras2torch_birnn.__file__).parents[1])],
            "limits": {
                "cpu": limits.MAX_REWRITE_SECONDS,
                "memory": limits.MAX_PARSER_MEMORY + 2 * total,
                "file": 2 * (path.stat().st_size + total) + limits.MIB,
            },
        }
        _run(job, (file.fileno(), data.fileno()))
        os.fsync(file.fileno())


def _write_values(handle: int, edits: LibraryEdits) -> tuple[list[dict[str, Any]], int]:
    """Write all changed regions one after another; return where each is, and their bytes."""
    found: list[dict[str, Any]] = []
    at = 0
    for path, (array, values) in edits.values.items():
        for region, block in _changed_regions(array, values):
            data = np.ascontiguousarray(block).tobytes()
            write_all(handle, data)
            known = {"path": path, "region": region, "at": at, "size": len(data)}
            found.append({**known, "dtype": STORED_DTYPES[array.stored_as]})
            at += len(data)
    return found, at


def _changed_regions(
    array: StoredArray, values: Array
) -> Iterator[tuple[tuple[tuple[int, int], ...], Array]]:
    """Yield those chunks of an array that differ from what is stored."""
    before = array.read_stored()
    layout = array.layout
    chunks: Sequence[tuple[tuple[int, int], ...]] = (
        [chunk.region(layout.chunk, array.shape) for chunk in layout.chunks]
        if isinstance(layout, Chunked)
        else [tuple((0, size) for size in array.shape)]
    )
    for region in chunks:
        at = tuple(slice(first, last) for first, last in region)
        if values[at].tobytes() != before[at].tobytes():
            yield region, values[at]


def _run(job: dict[str, Any], handles: tuple[int, ...]) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(_SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=isolated_environment(),
        pass_fds=handles,
    ) as process:
        try:
            line = json.dumps(job).encode() + b"\n"
            out, _ = process.communicate(line, timeout=limits.MAX_REWRITE_SECONDS)
            answer = json.loads(out)
        except (subprocess.TimeoutExpired, ValueError):
            answer = {"refused": "the HDF5 library crashed or did not finish"}
        finally:
            process.kill()
    if answer != {}:
        why = answer.get("refused") if isinstance(answer, dict) else None
        raise InvalidModelFileError(
            f"its compressed arrays cannot be written again ({printable(why)})",
            "save the model without compression",
        )
