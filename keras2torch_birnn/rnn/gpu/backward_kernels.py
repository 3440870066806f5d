"""The Triton kernels of one step backward: everything but the matrix products.

Tensors and letters are those of ``forward_kernels``.
"""

from __future__ import annotations

import triton.language as tl

from keras2torch_birnn.rnn.gpu.functions import activate, pull_back
from keras2torch_birnn.rnn.gpu.tiles import jit_step, load, locate, state_place, store, time_place


@jit_step
def retreat(
    sums: tl.tensor,
    h: tl.tensor,
    c: tl.tensor,
    sums_n: tl.tensor,
    d_out: tl.tensor,
    d_h: tl.tensor,
    d_c: tl.tensor,
    d_sums: tl.tensor,
    d_recurrent: tl.tensor,
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
    has_d_out: tl.constexpr,
    masked: tl.constexpr,
    compute: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_units: tl.constexpr,
) -> None:
    """Compute the gradients of the sums and, in d_h and d_c, those of the old states.

    In d_h without what comes through the recurrent products. A GRU that resets before its product
    gets those of z and n here, and that of r from ``retreat_reset``.
    """
    rows, columns, inside, valid, at = locate(
        lengths, step, time, batch, units, masked, tile_rows, tile_units
    )
    state = state_place(rows, columns, 0, 1, batch, units)
    old = state_place(rows, columns, step, time + 1, batch, units)
    passed = load(d_h, state, inside, compute)
    d_new = passed
    if has_d_out:
        shown = time_place(rows, columns, at, time, units)
        d_new += load(d_out, shown, inside & valid, compute)
    # Where a step does not count, a derivative may be infinite or not a number: results are
    # replaced there, not multiplied by zero.
    if kind == "LSTM":
        place = time_place(rows, columns, at, time, 4 * units)
        part = state_place(rows, columns, step, time, batch, 4 * units)
        i_sum = load(sums, place, inside, compute)
        f_sum = load(sums, place + units, inside, compute)
        g_sum = load(sums, place + 2 * units, inside, compute)
        o_sum = load(sums, place + 3 * units, inside, compute)
        i = activate(i_sum, inside, gate, g1, g2, g3)
        f = activate(f_sum, inside, gate, g1, g2, g3)
        g = activate(g_sum, inside, activation, a1, a2, a3)
        o = activate(o_sum, inside, gate, g1, g2, g3)
        c_old = load(c, old, inside, compute)
        c_new = load(
            c, state_place(rows, columns, step + 1, time + 1, batch, units), inside, compute
        )
        passed_c = load(d_c, state, inside, compute)
        d_cell = passed_c + pull_back(c_new, d_new * o, inside, activation, a1, a2, a3)
        shown_c = activate(c_new, inside, activation, a1, a2, a3)
        d_i = tl.where(valid, pull_back(i_sum, d_cell * g, inside, gate, g1, g2, g3), 0.0)
        d_f = tl.where(valid, pull_back(f_sum, d_cell * c_old, inside, gate, g1, g2, g3), 0.0)
        d_g = tl.where(valid, pull_back(g_sum, d_cell * i, inside, activation, a1, a2, a3), 0.0)
        d_o = tl.where(valid, pull_back(o_sum, d_new * shown_c, inside, gate, g1, g2, g3), 0.0)
        store(d_sums, place, d_i, inside)
        store(d_sums, place + units, d_f, inside)
        store(d_sums, place + 2 * units, d_g, inside)
        store(d_sums, place + 3 * units, d_o, inside)
        store(d_recurrent, part, d_i, inside)
        store(d_recurrent, part + units, d_f, inside)
        store(d_recurrent, part + 2 * units, d_g, inside)
        store(d_recurrent, part + 3 * units, d_o, inside)
        store(d_c, state, tl.where(valid, d_cell * f, passed_c), inside)
        store(d_h, state, tl.where(valid, 0.0, passed), inside)
    elif kind == "SimpleRNN":
        place = time_place(rows, columns, at, time, units)
        part = state_place(rows, columns, step, time, batch, units)
        a_sum = load(sums, place, inside, compute)
        d_a = tl.where(valid, pull_back(a_sum, d_new, inside, activation, a1, a2, a3), 0.0)
        store(d_sums, place, d_a, inside)
        store(d_recurrent, part, d_a, inside)
        store(d_h, state, tl.where(valid, 0.0, passed), inside)
    else:
        place = time_place(rows, columns, at, time, 3 * units)
        part = state_place(rows, columns, step, time, batch, 3 * units)
        z_sum = load(sums, place + units, inside, compute)
        n_sum = load(sums, place + 2 * units, inside, compute)
        z = activate(z_sum, inside, gate, g1, g2, g3)
        n = activate(n_sum, inside, activation, a1, a2, a3)
        d_gate = d_new * (load(h, old, inside, compute) - n)
        d_z = tl.where(valid, pull_back(z_sum, d_gate, inside, gate, g1, g2, g3), 0.0)
        d_gate = d_new * (1.0 - z)
        d_n = tl.where(valid, pull_back(n_sum, d_gate, inside, activation, a1, a2, a3), 0.0)
        store(d_sums, place + units, d_z, inside)
        store(d_sums, place + 2 * units, d_n, inside)
        store(d_recurrent, part + units, d_z, inside)
        if kind == "GRU":
            r_sum = load(sums, place, inside, compute)
            r = activate(r_sum, inside, gate, g1, g2, g3)
            sum_n = load(
                sums_n, state_place(rows, columns, step, time, batch, units), inside, compute
            )
            d_r = pull_back(r_sum, d_n * sum_n, inside, gate, g1, g2, g3)
            d_r = tl.where(valid, d_r, 0.0)
            store(d_sums, place, d_r, inside)
            store(d_recurrent, part, d_r, inside)
            store(d_recurrent, part + 2 * units, tl.where(valid, d_n * r, 0.0), inside)
        else:
            tl.static_assert(kind == "GRU before", "a cell without a kernel")
            store(d_recurrent, part + 2 * units, d_n, inside)
        store(d_h, state, tl.where(valid, d_new * z, passed), inside)


@jit_step
def retreat_reset(
    sums: tl.tensor,
    h: tl.tensor,
    d_reset: tl.tensor,
    d_h: tl.tensor,
    d_sums: tl.tensor,
    d_recurrent: tl.tensor,
    lengths: tl.tensor,
    step: tl.tensor,
    time: tl.tensor,
    batch: tl.tensor,
    units: tl.tensor,
    gate: tl.constexpr,
    g1: tl.constexpr,
    g2: tl.constexpr,
    g3: tl.constexpr,
    masked: tl.constexpr,
    compute: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_units: tl.constexpr,
) -> None:
    """Compute the gradient of r's sum, and add that of h through r h to d_h."""
    rows, columns, inside, valid, at = locate(
        lengths, step, time, batch, units, masked, tile_rows, tile_units
    )
    state = state_place(rows, columns, 0, 1, batch, units)
    old = state_place(rows, columns, step, time + 1, batch, units)
    place = time_place(rows, columns, at, time, 3 * units)
    part = state_place(rows, columns, step, time, batch, 3 * units)
    r_sum = load(sums, place, inside, compute)
    d_product = load(d_reset, state, inside, compute)
    d_gate = d_product * load(h, old, inside, compute)
    d_r = tl.where(valid, pull_back(r_sum, d_gate, inside, gate, g1, g2, g3), 0.0)
    store(d_sums, place, d_r, inside)
    store(d_recurrent, part, d_r, inside)
    through = d_product * activate(r_sum, inside, gate, g1, g2, g3)
    passed = load(d_h, state, inside, compute)
    store(d_h, state, passed + tl.where(valid, through, 0.0), inside)
