"""Kernels of one step that multiply, too, forward and backward: one launch a step.

Each program has some rows and units of one direction. It multiplies for these, waits for its own
threads, and runs the kernel of a step. What programs write for others to read, these read in the
next launch: backward, a step adds to d_h the products of the step that was run before. A GRU that
resets before its product takes two launches. Tensors and letters are those of ``forward_kernels``.
"""

from __future__ import annotations

import triton.language as tl

from keras2torch_birnn.rnn.gpu.backward_kernels import retreat, retreat_reset
from keras2torch_birnn.rnn.gpu.forward_kernels import advance, reset_state
from keras2torch_birnn.rnn.gpu.tiles import jit_step, multiply, state_place


@jit_step
def fused_forward(
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
    step: tl.tensor,
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
    of_reset: tl.constexpr,
    masked: tl.constexpr,
    compute: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_units: tl.constexpr,
    tile_depth: tl.constexpr,
    tile_width: tl.constexpr,
) -> None:
    """Run a step, or of a GRU that resets before its product the part behind the reset.

    weight: (D, H, G * H).
    """
    width = gates * units
    weight += state_place(0, 0, 0, 1, units, width)
    begin = tl.program_id(1) * tile_units
    end = tl.minimum(begin + tile_units, units)
    if of_reset:
        if keep:
            reset = reset_h + state_place(0, 0, step, time, batch, units)
        else:
            reset = reset_h + state_place(0, 0, 0, 1, batch, units)
        multiply(
            *(reset, weight + 2 * units, product_n + state_place(0, 0, 0, 1, batch, units)),
            *(batch, units, begin, end, units, units, width, False),
            *(compute, tile_rows, tile_depth, tile_width),
        )
    else:
        if keep:
            old = h + state_place(0, 0, step, time + 1, batch, units)
        else:
            old = h + state_place(0, 0, step % 2, 2, batch, units)
        first: tl.constexpr = 2 if kind == "GRU before" else gates
        whole = product + state_place(0, 0, 0, 1, batch, first * units)
        for number in tl.static_range(first):
            before = number * units
            multiply(
                *(old, weight + before, whole + before),
                *(batch, units, begin, end, first * units, units, width, False),
                *(compute, tile_rows, tile_depth, tile_width),
            )
    tl.debug_barrier()
    if kind == "GRU before" and not of_reset:
        reset_state(
            *(sums, product, h, reset_h, lengths, step, time, batch, units),
            *(gate, g1, g2, g3, keep, masked, compute, tile_rows, tile_units),
        )
    else:
        advance(
            *(sums, product, product_n, bias_n, h, c, sums_n, out),
            *(lengths, step, time, batch, units, kind, activation, a1, a2, a3, gate, g1, g2, g3),
            *(has_bias_n, keep, masked, compute, tile_rows, tile_units),
        )


@jit_step
def fused_backward(
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
    step: tl.tensor,
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
    of_reset: tl.constexpr,
    masked: tl.constexpr,
    compute: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_units: tl.constexpr,
    tile_depth: tl.constexpr,
    tile_width: tl.constexpr,
) -> None:
    """Run backward through a step, or, of a GRU that resets before its product, through its reset.

    weight: (D, G * H, H).
    """
    width, first = gates * units, gates * units
    if kind == "GRU before":
        first = 2 * units
    weight += state_place(0, 0, 0, 1, width, units)
    begin = tl.program_id(1) * tile_units
    end = tl.minimum(begin + tile_units, units)
    if of_reset:
        found = d_recurrent + state_place(0, 0, step, time, batch, width) + first
        multiply(
            *(found, weight + first * units, d_reset + state_place(0, 0, 0, 1, batch, units)),
            *(batch, units, begin, end, units, width, units, False),
            *(compute, tile_rows, tile_depth, tile_width),
        )
        tl.debug_barrier()
        retreat_reset(
            *(sums, h, d_reset, d_h, d_sums, d_recurrent, lengths, step, time, batch, units),
            *(gate, g1, g2, g3, masked, compute, tile_rows, tile_units),
        )
    else:
        if step + 1 < time:
            found = d_recurrent + state_place(0, 0, step + 1, time, batch, width)
            multiply(
                *(found, weight, d_h + state_place(0, 0, 0, 1, batch, units)),
                *(batch, first, begin, end, units, width, units, True),
                *(compute, tile_rows, tile_depth, tile_width),
            )
        tl.debug_barrier()
        retreat(
            *(sums, h, c, sums_n, d_out, d_h, d_c, d_sums, d_recurrent),
            *(lengths, step, time, batch, units, kind, activation, a1, a2, a3, gate, g1, g2, g3),
            *(has_d_out, masked, compute, tile_rows, tile_units),
        )
