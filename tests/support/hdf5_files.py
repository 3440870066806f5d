"""HDF5 files made by h5py, and read by the store."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from keras2torch_birnn.readers.hdf5.store import HDF5Store
from keras2torch_birnn.readers.input_files import Window

NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
RANDOM = np.random.default_rng(7)


@contextmanager
def open_store(data: bytes | Path, offset: int = 0) -> Iterator[HDF5Store]:
    """Open a store over a file, or over bytes in a temporary one."""
    with data.open("rb", buffering=0) if isinstance(data, Path) else _temporary(data) as file:
        size = os.fstat(file.fileno()).st_size - offset
        with HDF5Store(Window(file, offset, size)) as store:
            yield store


@contextmanager
def _temporary(data: bytes) -> Iterator[Any]:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(data)
        yield file


def make_file(make: Callable[[h5py.File], object], **options: Any) -> bytes:
    """Return the bytes of an HDF5 file that ``make`` fills."""
    memory = io.BytesIO()
    with h5py.File(memory, "w", **options) as file:
        make(file)
    return memory.getvalue()


def read(data: bytes | Path, *paths: str) -> list[Any]:
    """Read the arrays of these paths."""
    with open_store(data) as store:
        return [array.read() for array in store.arrays(paths)]


def datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return all arrays of a file by a path, one that has several by one of them."""
    found: dict[str, h5py.Dataset] = {}
    file.visititems(lambda n, o: found.update({n: o}) if isinstance(o, h5py.Dataset) else None)
    return found


def draw_numbers(dtype: str, shape: tuple[int, ...]) -> Any:
    return RANDOM.integers(0, 200, shape).astype(dtype)


def assert_same(ours: Any, theirs: Any) -> None:
    """Assert equality of values, dtype (in native byte order), shape and flags."""
    assert ours.dtype == theirs.dtype.newbyteorder("=")
    assert ours.dtype.isnative
    assert ours.shape == theirs.shape
    assert ours.tobytes() == theirs.astype(ours.dtype).tobytes()
    assert ours.flags.writeable
    assert ours.flags.c_contiguous
