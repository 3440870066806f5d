"""Gradients of the engine "triton": the steps by its kernels, the sums over all steps by torch.

B batch, T time, F features, H units, G gates, D directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from keras2torch_birnn.merge_modes import merge_outputs
from keras2torch_birnn.rnn.call import RnnCall, RnnResult, State
from keras2torch_birnn.rnn.engines.engine import float_tensors, replace_float_tensors
from keras2torch_birnn.rnn.engines.loop import run_directions
from keras2torch_birnn.rnn.engines.rerun import differentiate
from keras2torch_birnn.rnn.gpu.step_cell import StepCell
from keras2torch_birnn.rnn.gpu.steps import (
    StepGradients,
    Steps,
    join_weights,
    run_steps,
    run_steps_back,
)
from keras2torch_birnn.rnn.layer import RnnLayer, Weights
from keras2torch_birnn.rnn.masks import zero_past
from keras2torch_birnn.rnn.tensor_memory import is_plain


def run_with_gradient(cell: StepCell, layer: RnnLayer, call: RnnCall) -> RnnResult:
    """Run the steps so that autograd can differentiate the result; the merge is torch's."""
    differentiable: Any = _Differentiable
    fixed = _Fixed(cell, layer, call.lengths, len(call.states()))
    found = differentiable.apply(fixed, *float_tensors(layer, call))
    out, *flat = cast(tuple[Tensor, ...], found)
    return merge_side_by_side(out, layer, call.merge), _split(flat, layer)


def merge_side_by_side(out: Tensor, layer: RnnLayer, merge: str | None) -> tuple[Tensor, ...]:
    """Merge outputs (B, T, D * H)."""
    if merge == "concat":
        return (out,)
    return merge_outputs(out.chunk(layer.count_directions(), dim=2), merge)


def _split(flat: Sequence[Tensor], layer: RnnLayer) -> tuple[State, ...]:
    """Split final states into those of each direction."""
    each = layer.state_count()
    return tuple(tuple(flat[i : i + each]) for i in range(0, len(flat), each))


@dataclass(frozen=True)
class _Fixed:
    """A call without the tensors of ``float_tensors``; ``states``: the number of initial states."""

    cell: StepCell
    layer: RnnLayer
    lengths: Tensor | None
    states: int

    def with_tensors(self, tensors: Sequence[Tensor]) -> tuple[RnnLayer, RnnCall]:
        """Return layer and call with the results of ``float_tensors``, or others like them."""
        layer, x, initial = replace_float_tensors(self.layer, tensors, self.states)
        return layer, RnnCall(x, self.lengths, initial)


class _Differentiable(torch.autograd.Function):
    """Forward and backward by the kernels."""

    @staticmethod
    def forward(ctx: Any, fixed: _Fixed, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return outputs side by side, then final states. tensors: of ``float_tensors``."""
        layer, call = fixed.with_tensors(tensors)
        operands = join_weights(fixed.cell, layer.get_weights())
        # Zero times a NaN of a masked step would be NaN in the gradient of the weights.
        x = zero_past(call.x, call.lengths)
        steps = run_steps(fixed.cell, operands, x, call.lengths, call.initial_state, keep=True)
        kept = (x, *(t for t in steps[1:] if t is not None))
        ctx.save_for_backward(*tensors, *kept)
        ctx.fixed, ctx.present = fixed, [t is not None for t in steps[1:]]
        ctx.set_materialize_grads(False)
        return steps.out, *(s.clone() for state in steps.final_states() for s in state)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return gradients of x, states and weights; they can be differentiated again."""
        fixed, saved = ctx.fixed, ctx.saved_tensors
        kept = 1 + sum(ctx.present)
        tensors, (x, *rest) = saved[:-kept], saved[-kept:]
        given = [g for g in gradients if g is not None]
        # The kernels' own gradients have none themselves, and are of plain tensors only.
        if torch.is_grad_enabled() or not is_plain([*given, *saved]):
            return _gradients_by_loop(fixed, tensors, ctx.needs_input_grad, gradients)
        each = iter(rest)
        found: list[Any] = [next(each) if there else None for there in ctx.present]
        steps = Steps(x, *found)
        layer, _ = fixed.with_tensors(tensors)
        return None, *_gradients(fixed, layer, x, steps, gradients, of_x=ctx.needs_input_grad[1])


def _gradients(
    fixed: _Fixed,
    layer: RnnLayer,
    x: Tensor,
    steps: Steps,
    gradients: Sequence[Tensor | None],
    *,
    of_x: bool,
) -> list[Tensor | None]:
    """Return the gradients of ``float_tensors``, given those of the outputs and final states."""
    cell, weights = fixed.cell, layer.get_weights()
    d_out, *d_final = gradients
    zero = torch.zeros_like(steps.h[0, 0])
    count = layer.state_count()
    d_states = [
        torch.stack([zero if d is None else d for d in d_final[which::count]])
        for which in range(count)
    ]
    operands = join_weights(cell, weights)
    found = run_steps_back(cell, operands.hh, steps, fixed.lengths, d_out, d_states)
    d_x = found.sums @ operands.ih if of_x else None
    states = [s for s in (found.h, found.c) if s is not None]
    d_initial = [s[d] for d in range(len(weights)) for s in states] if fixed.states else []
    return [d_x, *d_initial, *_weight_gradients(cell, weights, x, steps, found)]


def _weight_gradients(
    cell: StepCell,
    weights: Sequence[Weights],
    x: Tensor,
    steps: Steps,
    gradients: StepGradients,
) -> list[Tensor]:
    """Return the gradients of the parameters that are there: one product for each matrix."""
    directions, units = len(weights), steps.h.shape[3]
    sums = gradients.sums.flatten(0, 1)
    d_ih, d_bias = (sums.T @ x.flatten(0, 1)).chunk(directions), sums.sum(0).chunk(directions)
    recurrent = gradients.recurrent.flatten(1, 2)  # (D, T * B, G * H)
    before = steps.h[:, :-1].flatten(1, 2)
    if steps.reset_h is None:
        d_hh = torch.bmm(recurrent.transpose(1, 2), before)
    else:
        gates, n = recurrent[..., : 2 * units], recurrent[..., 2 * units :]
        of_n = torch.bmm(n.transpose(1, 2), steps.reset_h.flatten(1, 2))
        d_hh = torch.cat((torch.bmm(gates.transpose(1, 2), before), of_n), dim=1)
    # The two biases of a gate have one gradient, unless the reset comes between them.
    d_bias_hh = recurrent.sum(1) if cell.kind == "GRU" else d_bias
    return [
        d
        for direction, w in enumerate(weights)
        for d, p in zip(
            (d_ih[direction], d_hh[direction], d_bias[direction], d_bias_hh[direction]),
            w,
            strict=True,
        )
        if p is not None
    ]


def _gradients_by_loop(
    fixed: _Fixed,
    tensors: Sequence[Tensor],
    needs_input_grad: Sequence[bool],
    gradients: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Run the loop and differentiate that, twice if that is wanted."""

    def run(numbers: Sequence[Tensor]) -> Sequence[Tensor]:
        layer, call = fixed.with_tensors(numbers)
        outputs, states = run_directions(layer, call)
        return torch.cat(outputs, dim=2), *(s for state in states for s in state)

    return differentiate(run, tensors, needs_input_grad, gradients)
