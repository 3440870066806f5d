"""Lazy matrices, read from the file on demand, in blocks of rows.

A large weight is read three times (check for values that are not finite, golden vectors, writing),
never as a whole. NumPy takes a ``LazyArray`` as an array: operations that are not implemented in
blocks here read all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib.mixins import NDArrayOperatorsMixin

from keras2torch_birnn.progress import advance

Array: TypeAlias = npt.NDArray[Any]
# Ranges of the last axis: (first, after the last).
Columns: TypeAlias = tuple[tuple[int, int], ...]

# Smaller matrices are read at once.
LEAST_BYTES = 1 << 20
# A block of rows should fit into the processor's cache. A block of columns is read row by row, in
# pieces that should not be tiny.
BLOCK_BYTES = 1 << 19
COLUMNS_BYTES, PIECE_BYTES = 1 << 23, 1 << 12


class MatrixSource(Protocol):
    """A matrix in a file, such as ``StoredArray``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, number of columns."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the values read."""
        ...

    def rows(self, start: int, stop: int) -> Array:
        """Read these rows."""
        ...

    def between(self, first: int, last: int) -> Array:
        """Read these columns."""
        ...


@dataclass(frozen=True, eq=False)
class LazyArray(NDArrayOperatorsMixin):
    """Some columns of a matrix in a file, in this order, as ``dtype``; maybe transposed."""

    source: MatrixSource
    dtype: np.dtype[Any]
    columns: Columns
    transposed: bool = False

    @classmethod
    def whole(cls, source: MatrixSource) -> LazyArray:
        """Make the lazy array of a whole matrix."""
        return cls(source, source.dtype, ((0, source.shape[1]),))

    # ---- attributes of an array ----

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the array."""
        rows, width = self.source.shape[0], sum(b - a for a, b in self.columns)
        return (width, rows) if self.transposed else (rows, width)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return 2

    @property
    def size(self) -> int:
        """Number of values."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.size * self.dtype.itemsize

    def transpose(self) -> LazyArray:
        """Transpose without reading."""
        return replace(self, transposed=not self.transposed)

    T = property(transpose)

    def astype(self, dtype: npt.DTypeLike, copy: bool = True) -> LazyArray:
        """Convert to another dtype without reading."""
        return replace(self, dtype=np.dtype(dtype))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        """Read single rows if ``index`` is an integer or an array of them, else the whole array."""
        if isinstance(index, int) and not self.transposed and 0 <= index < len(self):
            return np.asarray(self._rows(index, index + 1)[0])
        numbers = np.asarray(index) if isinstance(index, np.ndarray) else None
        if numbers is None or numbers.dtype.kind not in "iu" or self.transposed:
            return np.asarray(self.read()[index])
        if numbers.size and not -len(self) <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"row {numbers.max()} of {len(self)}")
        different, where = np.unique(numbers % max(1, len(self)), return_inverse=True)
        found = [self._rows(int(row), int(row) + 1) for row in different]
        rows = np.concatenate(found) if found else np.empty((0, self.shape[1]), self.dtype)
        return np.asarray(rows[where.reshape(numbers.shape)])

    # ---- reading ----

    def _rows(self, start: int, stop: int) -> Array:
        """Read these rows of the source, its selected columns only, as ``dtype``."""
        found = self.source.rows(start, stop)
        if self.columns != ((0, self.source.shape[1]),):
            found = np.concatenate([found[:, a:b] for a, b in self.columns], axis=1)
        return found.astype(self.dtype, copy=False)

    def _steps(self, width: int, count: int) -> Iterator[tuple[int, int]]:
        step = max(1, BLOCK_BYTES // max(1, width * self.source.dtype.itemsize))
        for start in range(0, count, step):
            yield start, min(start + step, count)

    def _blocks_of_source(self) -> Iterator[tuple[int, int, Array]]:
        """Yield (first row, row after the last, those rows), not transposed."""
        for start, stop in self._steps(self.source.shape[1], self.source.shape[0]):
            yield start, stop, self._rows(start, stop)

    def blocks(self) -> Iterator[Array]:
        """Yield all values in C order, in blocks of rows; transposed, of the source's columns."""
        if not self.transposed:
            for _, _, block in self._blocks_of_source():
                yield np.ascontiguousarray(block)
            return
        item = self.source.dtype.itemsize
        step = max(COLUMNS_BYTES // max(1, self.source.shape[0] * item), PIECE_BYTES // item)
        for first, last in self.columns:
            for start in range(first, last, step):
                slab = self.source.between(start, min(start + step, last))
                yield np.ascontiguousarray(slab.T.astype(self.dtype, copy=False))

    def read(self) -> Array:
        """Read the whole array: new and C-contiguous."""
        out, at = np.empty(self.shape, self.dtype), 0
        for block in self.blocks():
            out[at : at + len(block)] = block
            at += len(block)
        return out

    # ---- NumPy's protocols (NEP 13, NEP 18) ----

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return self.read() if dtype is None else self.astype(dtype).read()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if ufunc is np.matmul and method == "__call__" and not options and len(inputs) == 2:
            left, right = inputs
            if isinstance(left, np.ndarray) and right is self and not self.transposed:
                return self.product(left)
        return getattr(ufunc, method)(*map(_read, inputs), **options)

    def __array_function__(
        self, function: Any, types: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        piecewise = _PIECEWISE.get(function)
        found = None if piecewise is None else piecewise(*args, **kwargs)
        return function(*map(_read, args), **kwargs) if found is None else found

    def product(self, left: Array) -> Array:
        """Compute ``left @ self``, (..., rows) -> (..., columns), block by block of rows."""
        kind = np.result_type(left.dtype, self.dtype)
        total = np.zeros((*left.shape[:-1], self.shape[1]), kind)
        if left.shape[-1] != self.shape[0]:
            raise ValueError(f"{left.shape} @ {self.shape}")
        for start, stop, block in self._blocks_of_source():
            total += left[..., start:stop] @ block
        return total


def _read(value: Any) -> Any:
    """Read lazy arrays, also inside lists."""
    if isinstance(value, LazyArray):
        return value.read()
    return type(value)(map(_read, value)) if isinstance(value, list | tuple) else value


def _split(matrix: Any, pieces: Any, axis: int = 0) -> list[LazyArray] | None:
    """Split like ``np.split`` into equal parts along the last axis; None for other cases."""
    if matrix.transposed or axis not in (-1, 1) or not isinstance(pieces, int):
        return None
    if len(matrix.columns) > 1 or matrix.shape[1] % pieces:
        return None
    (first, last), size = matrix.columns[0], matrix.shape[1] // pieces
    starts = range(first, last, size)
    return [replace(matrix, columns=((start, start + size),)) for start in starts]


def _concatenate(matrices: Any, axis: int = 0) -> LazyArray | None:
    """Join parts of one matrix like ``np.concatenate`` on the last axis; None for other cases."""
    first: LazyArray = matrices[0]
    alike = all(
        isinstance(m, LazyArray)
        and m.source is first.source
        and m.dtype == first.dtype
        and not m.transposed
        for m in matrices
    )
    if not alike or axis not in (-1, 1):
        return None
    return replace(first, columns=tuple(part for m in matrices for part in m.columns))


_PIECEWISE: Mapping[Any, Any] = {np.split: _split, np.concatenate: _concatenate}


def is_finite(values: Array | LazyArray) -> bool:
    """Tell whether no value is infinite or NaN, and report how many bytes were looked at."""
    blocks = values.blocks() if isinstance(values, LazyArray) else [values]
    return all(_is_finite(block) for block in blocks)


def _is_finite(block: Array) -> bool:
    advance(block.nbytes)
    return bool(np.isfinite(block).all())
