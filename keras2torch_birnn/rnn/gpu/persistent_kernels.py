"""Kernels of all steps in one launch, forward and backward.

Each program has its rows of one direction to itself, so that no program waits for another: it
multiplies, waits for its own threads, and runs the kernels of one step. Tensors and letters are
those of ``forward_kernels``; a tile has all units.
"""

from __future__ import annotations

import triton.language as tl

from keras2torch_birnn.rnn.gpu.backward_kernels import retreat, retreat_reset
from keras2torch_birnn.rnn.gpu.forward_kernels import advance, reset_state
from keras2torch_birnn.rnn.gpu.tiles import jit, jit_step, load, state_place, store


@jit
def multiply(
    left: tl.tensor,
    right: tl.tensor,
    out: tl.tensor,
    batch: tl.tensor,
    depth: tl.tensor,
    width: tl.tensor,
    left_width: tl.tensor,
    right_width: tl.tensor,
    add: tl.constexpr,
    compute: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_depth: tl.constexpr,
    tile_width: tl.constexpr,
) -> None:
    """Compute this program's rows of left (B, depth) times right (depth, width).

    left_width, right_width: elements from one row of the operand to the next.
    """
    rows = (tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)).to(tl.int64)[:, None]
    for column in range(0, width, tile_width):
        columns = column + tl.arange(0, tile_width)[None, :]
        total = tl.zeros((tile_rows, tile_width), compute)
        for row in range(0, depth, tile_depth):
            inner = row + tl.arange(0, tile_depth)
            a, b = inner[None, :], inner[:, None]
            a = tl.load(left + rows * left_width + a, (rows < batch) & (a < depth), other=0.0)
            b = tl.load(
                right + b * right_width + columns, (b < depth) & (columns < width), other=0.0
            )
            total = tl.dot(a, b, total, input_precision="ieee", out_dtype=compute)
        place, inside = rows * width + columns, (rows < batch) & (columns < width)
        if add:
            total += load(out, place, inside, compute)
        store(out, place, total, inside)


@jit_step
def run_forward(
    sums: tl.tensor,
    product: tl.tensor,
    product_n: tl.tensor,
    bias_n: tl.tensor,
    h: tl.tensor,
    c: tl.tensor,
    sums_n: tl.tensor,
    out: tl.tensor,
    reset_h: tl.tensor,
    weight: tl.tensor,
    lengths: tl.tensor,
    time: tl.tensor,
    batch: tl.tensor,
    units: tl.tensor,
    kind: tl.constexpr,
    gates: tl.constexpr,
    activation: tl.constexpr,
    a1: tl.constexpr,
    a2: tl.constexpr,
    a3: tl.constexpr,
    gate: tl.constexpr,
    g1: tl.constexpr,
    g2: tl.constexpr,
    g3: tl.constexpr,
    has_bias_n: tl.constexpr,
    keep: tl.constexpr,
    masked: tl.constexpr,
    compute: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_units: tl.constexpr,
    tile_depth: tl.constexpr,
    tile_width: tl.constexpr,
) -> None:
    """Run all steps. weight: (D, H, G * H)."""
    width, first = gates * units, gates * units
    if kind == "GRU before":
        first = 2 * units
    weight += state_place(0, 0, 0, 1, units, width)
    whole = product + state_place(0, 0, 0, 1, batch, first)
    whole_n = product_n + state_place(0, 0, 0, 1, batch, units)
    for step in range(time):
        if keep:
            old = h + state_place(0, 0, step, time + 1, batch, units)
            reset = reset_h + state_place(0, 0, step, time, batch, units)
        else:
            old = h + state_place(0, 0, 0, 1, batch, units)
            reset = reset_h + state_place(0, 0, 0, 1, batch, units)
        multiply(
            *(old, weight, whole, batch, units, first, units, width, False),
            *(compute, tile_rows, tile_depth, tile_width),
        )
        tl.debug_barrier()
        if kind == "GRU before":
            reset_state(
                *(sums, product, h, reset_h, lengths, step, time, batch, units),
                *(gate, g1, g2, g3, keep, masked, compute, tile_rows, tile_units),
            )
            tl.debug_barrier()
            multiply(
                *(reset, weight + first, whole_n, batch, units, units, units, width, False),
                *(compute, tile_rows, tile_depth, tile_width),
            )
            tl.debug_barrier()
        advance(
            *(sums, product, product_n, bias_n, h, c, sums_n, out),
            *(lengths, step, time, batch, units, kind, activation, a1, a2, a3, gate, g1, g2, g3),
            *(has_bias_n, keep, masked, compute, tile_rows, tile_units),
        )
        tl.debug_barrier()


@jit_step
def run_backward(
    sums: tl.tensor,
    h: tl.tensor,
    c: tl.tensor,
    sums_n: tl.tensor,
    d_out: tl.tensor,
    d_h: tl.tensor,
    d_c: tl.tensor,
    d_sums: tl.tensor,
    d_recurrent: tl.tensor,
    d_reset: tl.tensor,
    weight: tl.tensor,
    lengths: tl.tensor,
    time: tl.tensor,
    batch: tl.tensor,
    units: tl.tensor,
    kind: tl.constexpr,
    gates: tl.constexpr,
    activation: tl.constexpr,
    a1: tl.constexpr,
    a2: tl.constexpr,
    a3: tl.constexpr,
    gate: tl.constexpr,
    g1: tl.constexpr,
    g2: tl.constexpr,
    g3: tl.constexpr,
    has_d_out: tl.constexpr,
    masked: tl.constexpr,
    compute: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_units: tl.constexpr,
    tile_depth: tl.constexpr,
    tile_width: tl.constexpr,
) -> None:
    """Run backward through all steps. weight: (D, G * H, H)."""
    width, first = gates * units, gates * units
    if kind == "GRU before":
        first = 2 * units
    weight += state_place(0, 0, 0, 1, width, units)
    whole = d_h + state_place(0, 0, 0, 1, batch, units)
    whole_reset = d_reset + state_place(0, 0, 0, 1, batch, units)
    for past in range(time):
        step = time - 1 - past
        retreat(
            *(sums, h, c, sums_n, d_out, d_h, d_c, d_sums, d_recurrent),
            *(lengths, step, time, batch, units, kind, activation, a1, a2, a3, gate, g1, g2, g3),
            *(has_d_out, masked, compute, tile_rows, tile_units),
        )
        tl.debug_barrier()
        found = d_recurrent + state_place(0, 0, step, time, batch, width)
        if kind == "GRU before":
            of_n = weight + first * units
            multiply(
                *(found + first, of_n, whole_reset, batch, units, units, width, units, False),
                *(compute, tile_rows, tile_depth, tile_width),
            )
            tl.debug_barrier()
            retreat_reset(
                *(sums, h, d_reset, d_h, d_sums, d_recurrent, lengths, step, time, batch, units),
                *(gate, g1, g2, g3, masked, compute, tile_rows, tile_units),
            )
            tl.debug_barrier()
        multiply(
            *(found, weight, whole, batch, first, units, width, units, True),
            *(compute, tile_rows, tile_depth, tile_width),
        )
        tl.debug_barrier()
