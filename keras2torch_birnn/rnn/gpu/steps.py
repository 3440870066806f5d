"""Run the steps of a layer, forward and backward: matrix products by torch, the rest by Triton.

Two launches a step: one batched product of both directions, one kernel. Or one of a fused kernel,
which multiplies itself. A GRU that resets before its product takes twice as many. Or one launch of
a persistent kernel for all steps. B batch, T time, F features, H units, G gates, D directions;
other tensors as in ``forward_kernels``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from keras2torch_birnn.rnn.call import State
from keras2torch_birnn.rnn.gpu.launcher import Launcher, on_device
from keras2torch_birnn.rnn.gpu.step_cell import StepCell
from keras2torch_birnn.rnn.layer import Weights


class Operands(NamedTuple):
    """The weights of all directions, side by side."""

    ih: Tensor  # (D * G * H, F)
    hh: Tensor  # (D, G * H, H)
    bias: Tensor | None  # (D * G * H,)
    bias_n: Tensor | None  # (D, H), see ``forward_kernels.advance``


class Steps(NamedTuple):
    """The tensors of a forward run. sums_n and reset_h belong to one kind of GRU each."""

    out: Tensor  # (B, T, D * H)
    h: Tensor
    c: Tensor | None
    sums: Tensor
    sums_n: Tensor | None
    reset_h: Tensor | None

    def final_states(self) -> tuple[State, ...]:
        """Return the states after the last step, for each direction."""
        index = self.out.shape[1] % self.h.shape[1]
        last = [s[:, index].unbind(0) for s in (self.h, self.c) if s is not None]
        return tuple(zip(*last, strict=True))


class StepGradients(NamedTuple):
    """The gradients of a forward run's sums, recurrent products and initial states."""

    sums: Tensor  # (B, T, D * G * H)
    recurrent: Tensor  # (D, T, B, G * H)
    h: Tensor  # (D, B, H)
    c: Tensor | None


def join_weights(cell: StepCell, weights: Sequence[Weights]) -> Operands:
    """Put the weights of all directions side by side."""
    ih, hh = torch.cat([w.ih for w in weights]), torch.stack([w.hh for w in weights])
    if all(b is None for w in weights for b in (w.bias_ih, w.bias_hh)):
        return Operands(ih, hh, None, None)
    units = hh.shape[2]
    zero = hh.new_zeros(hh.shape[1])
    inputs = [zero if w.bias_ih is None else w.bias_ih for w in weights]
    states = [zero if w.bias_hh is None else w.bias_hh for w in weights]
    bias_n = None
    if cell.kind == "GRU":
        bias_n = torch.stack([b[2 * units :] for b in states])
        states = [torch.cat((b[: 2 * units], zero[:units])) for b in states]
    return Operands(ih, hh, torch.cat(inputs) + torch.cat(states), bias_n)


def run_steps(
    cell: StepCell,
    operands: Operands,
    x: Tensor,
    lengths: Tensor | None,
    initial_state: Sequence[State] | None,
    *,
    keep: bool,
) -> Steps:
    """Run all steps of x (B, T, F). keep: everything that the gradient needs."""
    from keras2torch_birnn.rnn.gpu import forward_kernels as kernels
    from keras2torch_birnn.rnn.gpu.fused_kernels import fused_forward
    from keras2torch_birnn.rnn.gpu.persistent_kernels import run_forward

    hh = operands.hh.transpose(1, 2)
    (batch, time, _), (directions, units, width) = x.shape, hh.shape
    sums = functional.linear(x, operands.ih, operands.bias).contiguous()

    def per_step() -> Tensor:
        return x.new_empty(directions, time if keep else 1, batch, units)

    def states(which: int) -> Tensor:
        made = x.new_empty(directions, time + 1 if keep else 2, batch, units)
        if initial_state is None:
            made[:, 0].zero_()
        else:
            torch.stack([state[which] for state in initial_state], out=made[:, 0])
        return made

    def at_steps(values: Tensor) -> list[Tensor]:
        places = values.unbind(1)
        return [places[step % len(places)] for step in range(time)]

    h, c = states(0), states(1) if cell.kind == "LSTM" else None
    out = x.new_empty(batch, time, directions * units)
    sums_n = per_step() if cell.kind == "GRU" else None
    reset_h = per_step() if cell.resets_before else None
    first = 2 * units if cell.resets_before else width
    product = x.new_empty(directions, batch, first)
    product_n = product if reset_h is None else x.new_empty(directions, batch, units)
    launcher = Launcher.of(cell, h, time, lengths)
    bias_n = product if operands.bias_n is None else operands.bias_n
    # A kernel does not read what its cell does not have; any tensor will do in its place.
    given = (
        sums,
        product,
        product_n,
        bias_n,
        h,
        *(h if t is None else t for t in (c, sums_n)),
        out,
    )
    options = {
        **launcher.cell_constants(),
        "has_bias_n": operands.bias_n is not None,
        "keep": keep,
    }
    reset = at_steps(h if reset_h is None else reset_h)
    with on_device(x):
        if cell.form != "steps":
            given = (*given, h if reset_h is None else reset_h, hh.contiguous())
            options |= launcher.product_constants()
        if cell.form == "persistent":
            launcher.launch(run_forward, given, **options)
            return Steps(out, h, c, sums, sums_n, reset_h)
        for step, read in enumerate(at_steps(h)):
            if cell.form == "fused":
                for of_reset in (False, True)[: 1 + cell.resets_before]:
                    launcher.launch(fused_forward, given, step, **options, of_reset=of_reset)
                continue
            torch.bmm(read, hh[..., :first], out=product)
            if reset_h is not None:
                launcher.launch(
                    kernels.reset_state,
                    (sums, product, h, reset_h),
                    step,
                    **launcher.gate_constants(),
                    keep=keep,
                )
                torch.bmm(reset[step], hh[..., first:], out=product_n)
            launcher.launch(kernels.advance, given, step, **options)
    return Steps(out, h, c, sums, sums_n, reset_h)


def run_steps_back(
    cell: StepCell,
    hh: Tensor,
    steps: Steps,
    lengths: Tensor | None,
    d_out: Tensor | None,
    d_states: Sequence[Tensor],
) -> StepGradients:
    """Run backward through the steps that were kept.

    d_out: (B, T, D * H), None for zeros. d_states: (D, B, H) of h, and of an LSTM's c; they are
    changed.
    """
    from keras2torch_birnn.rnn.gpu import backward_kernels as kernels
    from keras2torch_birnn.rnn.gpu.fused_kernels import fused_backward
    from keras2torch_birnn.rnn.gpu.persistent_kernels import run_backward

    sums, h = steps.sums, steps.h
    (directions, width, units), (batch, time, _) = hh.shape, sums.shape
    d_h, d_c = d_states[0], d_states[-1]
    d_sums = torch.empty_like(sums)
    d_recurrent = sums.new_empty(directions, time, batch, width)
    launcher = Launcher.of(cell, h, time, lengths)
    # As above: any tensor will do where there is none.
    given = (
        sums,
        h,
        h if steps.c is None else steps.c,
        h if steps.sums_n is None else steps.sums_n,
        sums if d_out is None else d_out.contiguous(),
        d_h,
        d_c,
        d_sums,
        d_recurrent,
    )
    options = {**launcher.cell_constants(), "has_d_out": d_out is not None}
    first = 2 * units if cell.resets_before else width
    d_reset = torch.empty_like(d_h) if cell.resets_before else d_h
    products = d_recurrent.unbind(1)
    gradients = StepGradients(d_sums, d_recurrent, d_h, d_c if cell.kind == "LSTM" else None)
    with on_device(sums):
        multiplied = (*given, d_reset, hh)
        if cell.form != "steps":
            options |= launcher.product_constants()
        if cell.form == "persistent":
            launcher.launch(run_backward, multiplied, **options)
            return gradients
        for step in reversed(range(time)):
            if cell.form == "fused":
                for of_reset in (False, True)[: 1 + cell.resets_before]:
                    launcher.launch(fused_backward, multiplied, step, **options, of_reset=of_reset)
                continue
            launcher.launch(kernels.retreat, given, step, **options)
            if cell.resets_before:
                torch.bmm(products[step][..., first:], hh[:, first:], out=d_reset)
                launcher.launch(
                    kernels.retreat_reset,
                    (sums, h, d_reset, d_h, d_sums, d_recurrent),
                    step,
                    **launcher.gate_constants(),
                )
            d_h.baddbmm_(products[step][..., :first], hh[:, :first])
        if cell.form == "fused":  # each step adds the products of the one before
            d_h.baddbmm_(products[0][..., :first], hh[:, :first])
    return gradients
