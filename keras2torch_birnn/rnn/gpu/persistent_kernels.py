"""Kernels of all steps in one launch, forward and backward.

Each program has its rows of one direction to itself, so that no program waits for another: it
multiplies, waits for its own threads, and runs the kernels of one step. Tensors and letters are
those of ``forward_kernels``; a tile has all units.
"""

from __future__ import annotations

import triton.language as tl

from keras2torch_birnn.rnn.gpu.backward_kernels import retreat, retreat_reset
from keras2torch_birnn.rnn.gpu.forward_kernels import advance, reset_state
from keras2torch_birnn.rnn.gpu.tiles import jit_step, multiply, state_place


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
            old = h + state_place(0, 0, step % 2, 2, batch, units)
            reset = reset_h + state_place(0, 0, 0, 1, batch, units)
        multiply(
            *(old, weight, whole, batch, units, 0, first, first, units, width, False),
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
                *(reset, weight + first, whole_n, batch, units, 0, units, units, units, width),
                *(False, compute, tile_rows, tile_depth, tile_width),
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
                *(found + first, of_n, whole_reset, batch, units, 0, units, units, width),
                *(units, False, compute, tile_rows, tile_depth, tile_width),
            )
            tl.debug_barrier()
            retreat_reset(
                *(sums, h, d_reset, d_h, d_sums, d_recurrent, lengths, step, time, batch, units),
                *(gate, g1, g2, g3, masked, compute, tile_rows, tile_units),
            )
            tl.debug_barrier()
        multiply(
            *(found, weight, whole, batch, first, 0, units, units, width, units, True),
            *(compute, tile_rows, tile_depth, tile_width),
        )
        tl.debug_barrier()
