"""Where a program of a Triton kernel finds its part of the tensors.

B batch, T time, D directions. A program computes a tile of rows and units of one direction. The
second direction reads the valid steps of a row in reverse: at step s the time ``length - 1 - s``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

_triton: Any = triton
jit: Callable[[Callable[..., Any]], Any] = _triton.jit


def jit_step(kernel: Callable[..., Any]) -> Any:
    """Compile a kernel, once for all steps, lengths and batch sizes."""
    return _triton.jit(kernel, do_not_specialize=("step", "time", "batch"))


@jit
def locate(
    lengths: tl.tensor,
    step: tl.tensor,
    time: tl.tensor,
    batch: tl.tensor,
    units: tl.tensor,
    masked: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_units: tl.constexpr,
) -> tl.tensor:
    """Return this program's rows, units, elements that exist, valid rows, and the rows' time."""
    rows = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)[:, None]
    columns = tl.program_id(1) * tile_units + tl.arange(0, tile_units)[None, :]
    if masked:
        length = tl.load(lengths + rows, mask=rows < batch, other=0).to(tl.int32)
    else:
        length = rows * 0 + time
    valid = step < length
    at = tl.where(valid & (tl.program_id(2) == 1), length - 1 - step, step)
    return rows.to(tl.int64), columns, (rows < batch) & (columns < units), valid, at


@jit
def state_place(
    rows: tl.tensor,
    columns: tl.tensor,
    index: tl.tensor,
    count: tl.tensor,
    batch: tl.tensor,
    width: tl.tensor,
) -> tl.tensor:
    """Return the offsets of a tile in (D, count, B, width), at one index of the second axis."""
    block = tl.program_id(2).to(tl.int64) * count + index
    return (block * batch + rows) * width + columns


@jit
def time_place(
    rows: tl.tensor, columns: tl.tensor, at: tl.tensor, time: tl.tensor, width: tl.tensor
) -> tl.tensor:
    """Return the offsets of a tile in (B, T, D, width)."""
    return ((rows * time + at) * tl.num_programs(2) + tl.program_id(2)) * width + columns


@jit
def load(
    pointer: tl.tensor, place: tl.tensor, inside: tl.tensor, compute: tl.constexpr
) -> tl.tensor:
    """Load a tile in the type that is computed with."""
    return tl.load(pointer + place, mask=inside, other=0.0).to(compute)


@jit
def store(pointer: tl.tensor, place: tl.tensor, value: tl.tensor, inside: tl.tensor) -> None:
    """Store a tile in the type of its tensor."""
    tl.store(pointer + place, value.to(pointer.dtype.element_ty), mask=inside)


@jit
def multiply(
    left: tl.tensor,
    right: tl.tensor,
    out: tl.tensor,
    batch: tl.tensor,
    depth: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    width: tl.tensor,
    left_width: tl.tensor,
    right_width: tl.tensor,
    add: tl.constexpr,
    compute: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_depth: tl.constexpr,
    tile_width: tl.constexpr,
) -> None:
    """Compute columns from begin to end of this program's rows of left (B, depth) times right.

    width, left_width, right_width: elements from one row to the next, of out and the operands.
    """
    rows = (tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)).to(tl.int64)[:, None]
    for column in range(begin, end, tile_width):
        columns = column + tl.arange(0, tile_width)[None, :]
        total = tl.zeros((tile_rows, tile_width), compute)
        for row in range(0, depth, tile_depth):
            inner = row + tl.arange(0, tile_depth)
            a, b = inner[None, :], inner[:, None]
            a = tl.load(left + rows * left_width + a, (rows < batch) & (a < depth), other=0.0)
            b = tl.load(right + b * right_width + columns, (b < depth) & (columns < end), other=0.0)
            total = tl.dot(a, b, total, input_precision="ieee", out_dtype=compute)
        place, inside = rows * width + columns, (rows < batch) & (columns < end)
        if add:
            total += load(out, place, inside, compute)
        store(out, place, total, inside)
