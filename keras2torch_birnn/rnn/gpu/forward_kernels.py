"""The Triton kernels of one step forward: everything but the matrix products.

B batch, T time, H units, G gates, D directions. Tensors, all contiguous:

    sums, d_sums      (B, T, D, G * H)  input products, in the order of time; with keep the kernels
                                        add the recurrent ones, which the gradient needs
    product           (D, B, R * H)     recurrent product of the step: of the first R gates
    h, c              (D, S, B, H)      states, in the order of reading; S: T + 1 with keep, else 2,
                                        which are read and written in turn
    sums_n, reset_h   (D, S, B, H)      n's recurrent sum; r h. S: T with keep, else 1
    d_recurrent       (D, T, B, G * H)  gradients of the recurrent products, in the order of reading
    out, d_out        (B, T, D, H)      in the order of time, zero at and after each row's length
    d_h, d_c, d_reset (D, B, H)         gradients of states

Equations: those of ``loop.py``, with gates in torch's order: LSTM i, f, g, o; GRU r, z, n.
"""

from __future__ import annotations

import triton.language as tl

from keras2torch_birnn.rnn.gpu.functions import activate
from keras2torch_birnn.rnn.gpu.tiles import jit_step, load, locate, state_place, store, time_place


@jit_step
def reset_state(
    sums: tl.tensor,
    product: tl.tensor,
    h: tl.tensor,
    reset_h: tl.tensor,
    lengths: tl.tensor,
    step: tl.tensor,
    time: tl.tensor,
    batch: tl.tensor,
    units: tl.tensor,
    gate: tl.constexpr,
    g1: tl.constexpr,
    g2: tl.constexpr,
    g3: tl.constexpr,
    keep: tl.constexpr,
    masked: tl.constexpr,
    compute: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_units: tl.constexpr,
) -> None:
    """Compute r h, for a GRU that resets the state before its product."""
    rows, columns, inside, _, at = locate(
        lengths, step, time, batch, units, masked, tile_rows, tile_units
    )
    place = time_place(rows, columns, at, time, 3 * units)
    r = load(sums, place, inside, compute)
    r += load(product, state_place(rows, columns, 0, 1, batch, 2 * units), inside, compute)
    if keep:
        old = state_place(rows, columns, step, time + 1, batch, units)
        new = state_place(rows, columns, step, time, batch, units)
        store(sums, place, r, inside)
    else:
        old = state_place(rows, columns, step % 2, 2, batch, units)
        new = state_place(rows, columns, 0, 1, batch, units)
    r = activate(r, inside, gate, g1, g2, g3)
    store(reset_h, new, r * load(h, old, inside, compute), inside)


@jit_step
def advance(
    sums: tl.tensor,
    product: tl.tensor,
    product_n: tl.tensor,
    bias_n: tl.tensor,
    h: tl.tensor,
    c: tl.tensor,
    sums_n: tl.tensor,
    out: tl.tensor,
    lengths: tl.tensor,
    step: tl.tensor,
    time: tl.tensor,
    batch: tl.tensor,
    units: tl.tensor,
    kind: tl.constexpr,
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
) -> None:
    """Compute the new states and the output.

    bias_n: (D, H), what a GRU adds to n's product before the reset. product_n: (D, B, H), the
    product of ``reset_h``.
    """
    rows, columns, inside, valid, at = locate(
        lengths, step, time, batch, units, masked, tile_rows, tile_units
    )
    if keep:
        old = state_place(rows, columns, step, time + 1, batch, units)
        new = state_place(rows, columns, step + 1, time + 1, batch, units)
    else:
        old = state_place(rows, columns, step % 2, 2, batch, units)
        new = state_place(rows, columns, (step + 1) % 2, 2, batch, units)
    h_old = load(h, old, inside, compute)
    if kind == "LSTM":
        place = time_place(rows, columns, at, time, 4 * units)
        part = state_place(rows, columns, 0, 1, batch, 4 * units)
        i = load(sums, place, inside, compute) + load(product, part, inside, compute)
        f = load(sums, place + units, inside, compute)
        f += load(product, part + units, inside, compute)
        g = load(sums, place + 2 * units, inside, compute)
        g += load(product, part + 2 * units, inside, compute)
        o = load(sums, place + 3 * units, inside, compute)
        o += load(product, part + 3 * units, inside, compute)
        if keep:
            store(sums, place, i, inside)
            store(sums, place + units, f, inside)
            store(sums, place + 2 * units, g, inside)
            store(sums, place + 3 * units, o, inside)
        i = activate(i, inside, gate, g1, g2, g3)
        f = activate(f, inside, gate, g1, g2, g3)
        o = activate(o, inside, gate, g1, g2, g3)
        c_old = load(c, old, inside, compute)
        c_new = f * c_old + i * activate(g, inside, activation, a1, a2, a3)
        h_new = o * activate(c_new, inside, activation, a1, a2, a3)
        store(c, new, tl.where(valid, c_new, c_old), inside)
    elif kind == "SimpleRNN":
        place = time_place(rows, columns, at, time, units)
        a = load(sums, place, inside, compute)
        a += load(product, state_place(rows, columns, 0, 1, batch, units), inside, compute)
        if keep:
            store(sums, place, a, inside)
        h_new = activate(a, inside, activation, a1, a2, a3)
    else:
        place = time_place(rows, columns, at, time, 3 * units)
        z = load(sums, place + units, inside, compute)
        n = load(sums, place + 2 * units, inside, compute)
        if kind == "GRU":
            part = state_place(rows, columns, 0, 1, batch, 3 * units)
            r = load(sums, place, inside, compute) + load(product, part, inside, compute)
            z += load(product, part + units, inside, compute)
            sum_n = load(product, part + 2 * units, inside, compute)
            if has_bias_n:
                # Once for every row: older Triton does not broadcast a pointer.
                shared = tl.program_id(2) * units + columns + 0 * rows
                sum_n += load(bias_n, shared, inside, compute)
            n += activate(r, inside, gate, g1, g2, g3) * sum_n
            if keep:
                store(sums_n, state_place(rows, columns, step, time, batch, units), sum_n, inside)
                store(sums, place, r, inside)
        else:
            tl.static_assert(kind == "GRU before", "a cell without a kernel")
            part = state_place(rows, columns, 0, 1, batch, 2 * units)
            z += load(product, part + units, inside, compute)
            part_n = state_place(rows, columns, 0, 1, batch, units)
            n += load(product_n, part_n, inside, compute)
        if keep:
            store(sums, place + units, z, inside)
            store(sums, place + 2 * units, n, inside)
        z = activate(z, inside, gate, g1, g2, g3)
        h_new = z * h_old + (1.0 - z) * activate(n, inside, activation, a1, a2, a3)
    store(h, new, tl.where(valid, h_new, h_old), inside)
    shown = time_place(rows, columns, at, time, units)
    store(out, shown, tl.where(valid, h_new, 0.0), inside)
