"""Calls of the engine "triton" and their gradients: steps by its kernels, sums over all by torch.

B batch, T time, F features, H units, G gates, D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from keras2torch_birnn.merge_modes import merge_outputs
from keras2torch_birnn.rnn.call import RnnCall, RnnResult, flatten_result, group_states
from keras2torch_birnn.rnn.engines.engine import (
    FixedCall,
    cast_as_autocast,
    float_tensors,
    needs_gradient,
)
from keras2torch_birnn.rnn.engines.loop import run_directions
from keras2torch_birnn.rnn.engines.rerun import differentiate
from keras2torch_birnn.rnn.gpu.graphs import Request, Tensors, requests_of, run_captured
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


def merge_side_by_side(out: Tensor, layer: RnnLayer, merge: str | None) -> tuple[Tensor, ...]:
    """Merge outputs (B, T, D * H)."""
    if merge == "concat":
        return (out,)
    return merge_outputs(out.chunk(layer.count_directions(), dim=2), merge)


class KernelFailedError(Exception):
    """The kernels of forward failed; the cause says how. Hooks of autograd raise other errors."""


class Course(NamedTuple):
    """How a call runs.

    dtype: what its floats are cast to, None to leave them. recorded: cells of whose steps CUDA
    graphs may be made; none: no graph. fail: is told what failed in backward, where the loop then
    runs; None: raise it.
    """

    dtype: torch.dtype | None = None
    recorded: Sequence[StepCell] = ()
    fail: Callable[[Exception], None] | None = None


def run_call(
    cell: StepCell, layer: RnnLayer, call: RnnCall, course: Course | None = None
) -> RnnResult:
    """Compute outputs and final states, so that autograd can differentiate them if it may have to.

    The call has rows and steps. The merge is torch's.
    """
    course = course or Course()
    if needs_gradient(layer, call):
        differentiable: Any = _Differentiable
        fixed = _Fixed(cell, FixedCall.of(layer, call._replace(merge=None)), course)
        out, *flat = differentiable.apply(fixed, *float_tensors(layer, call))
        return merge_side_by_side(out, layer, call.merge), group_states(flat, layer.state_count())
    with torch.no_grad():
        layer, call = cast_as_autocast(layer, call, course.dtype)
        operands = join_weights(cell, layer.get_weights())
        x, lengths, initial = call.x, call.lengths, call.initial_state
        steps = run_steps(cell, operands, x, lengths, initial, keep=False)
        return merge_side_by_side(steps.out, layer, call.merge), steps.final_states()


@dataclass(frozen=True)
class _Fixed:
    """All that the gradient of a call needs beside tensors."""

    cell: StepCell
    call: FixedCall
    course: Course

    def cast(self, layer: RnnLayer, call: RnnCall) -> tuple[RnnLayer, RnnCall]:
        """Return what is computed with."""
        return cast_as_autocast(layer, call, self.course.dtype)

    def run(
        self,
        compute: Callable[[StepCell, Tensors], Tensors],
        requests: Sequence[Request],
        layer: RnnLayer,
        what: Hashable,
        cut: Callable[[Tensors], Tensors] = tuple,
    ) -> Tensors:
        """Compute a request by the kernels, or replay a graph of them."""
        direct, (inputs, _) = partial(compute, self.cell), requests[0]
        if not self.course.recorded:
            return direct(inputs)
        ways = [partial(compute, cell) for cell in self.course.recorded]
        absent = tuple(p is None for p in layer.parameters)
        what = (what, layer.cell, absent, self.course.dtype)
        weights = layer.present_parameters()
        return run_captured(direct, lambda: ways, requests, weights, what, cut)


class _Differentiable(torch.autograd.Function):
    """Forward and backward by the kernels, or by graphs of them.

    A graph's results are copied, so nothing that is kept for the gradient changes when it is
    replayed for another call.
    """

    @staticmethod
    def forward(ctx: Any, fixed: _Fixed, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return outputs side by side, then final states. tensors: of ``float_tensors``."""
        layer, call = fixed.call.with_tensors(tensors)
        steps = call.x.shape[1]

        def compute(cell: StepCell, inputs: Tensors) -> Tensors:
            return _run_forward(cell, *fixed.cast(layer, call.with_inputs(inputs)))

        def cut(results: Tensors) -> Tensors:
            return [results[0][:, :steps], *results[1:]]

        try:
            found = fixed.run(compute, requests_of(call), layer, "forward", cut)
        except Exception as failure:  # a compiler or a driver may raise anything
            if fixed.course.fail is None or isinstance(failure, torch.OutOfMemoryError):
                raise
            raise KernelFailedError from failure
        count = 1 + layer.count_directions() * layer.state_count()
        ctx.save_for_backward(*tensors, *found[count:])
        ctx.fixed, ctx.tensor_count = fixed, len(tensors)
        ctx.set_materialize_grads(False)
        return tuple(found[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return gradients of x, states and weights; they can be differentiated again."""
        fixed, saved = ctx.fixed, ctx.saved_tensors
        tensors, kept = saved[: ctx.tensor_count], saved[ctx.tensor_count :]
        given = [g for g in gradients if g is not None]
        # The kernels' own gradients have none themselves, and are of plain tensors only.
        if torch.is_grad_enabled() or not is_plain([*given, *saved]):
            return _gradients_by_loop(fixed, tensors, ctx.needs_input_grad, gradients)
        try:
            return None, *_gradients(fixed, tensors, kept, gradients, of_x=ctx.needs_input_grad[1])
        except Exception as failure:  # a compiler or a driver may raise anything
            if fixed.course.fail is None or isinstance(failure, torch.OutOfMemoryError):
                raise
            fixed.course.fail(failure)
            return _gradients_by_loop(fixed, tensors, ctx.needs_input_grad, gradients)


def _run_forward(cell: StepCell, layer: RnnLayer, call: RnnCall) -> list[Tensor]:
    """Return outputs, final states, and what the gradient needs: x, states, sums, lengths."""
    # Zero times a NaN of a masked step would be NaN in the gradient of the weights.
    x, lengths = zero_past(call.x, call.lengths), call.lengths
    operands = join_weights(cell, layer.get_weights())
    steps = run_steps(cell, operands, x, lengths, call.initial_state, keep=True)
    final = (s.clone() for state in steps.final_states() for s in state)
    kept = (t for t in (x, *steps[1:], lengths) if t is not None)
    return [steps.out, *final, *kept]


def _gradients(
    fixed: _Fixed,
    tensors: Tensors,
    kept: Tensors,
    gradients: Sequence[Tensor | None],
    *,
    of_x: bool,
) -> list[Tensor | None]:
    """Return the gradients of ``float_tensors``, given those of the outputs and final states.

    kept: of ``_run_forward``; of more steps than the call has if a graph of more ran it.
    """
    layer, call = fixed.call.with_tensors(tensors)
    there = tuple(g is not None for g in gradients)
    more = kept[0].shape[1] - call.x.shape[1]
    given = [g for g in gradients if g is not None]
    if there[0] and more:
        given[0] = functional.pad(given[0], (0, 0, 0, more))

    def compute(cell: StepCell, inputs: Tensors) -> Tensors:
        numbers, each = inputs[: len(kept)], iter(inputs[len(kept) :])
        d_results = [next(each) if one else None for one in there]
        plain, _ = fixed.cast(layer, call)
        found = _run_backward(cell, plain, numbers, d_results, of_x=of_x, states=fixed.call.states)
        return [d.to(t.dtype) for d, t in zip(found, tensors[not of_x :], strict=True)]

    inputs, what = [*kept, *given], ("backward", there, of_x, fixed.call.states)
    found = fixed.run(compute, [Request(inputs, inputs)], layer, what)
    return [found[0][:, : call.x.shape[1]], *found[1:]] if of_x else [None, *found]


def _run_backward(
    cell: StepCell,
    layer: RnnLayer,
    kept: Tensors,
    gradients: Sequence[Tensor | None],
    *,
    of_x: bool,
    states: int,
) -> list[Tensor]:
    """Return the gradients of x, if they are wanted, of initial states, and of parameters."""
    weights, (x, *rest) = layer.get_weights(), kept
    each = iter(rest)
    there = (True, cell.kind == "LSTM", True, cell.kind == "GRU", cell.resets_before)
    found: list[Any] = [next(each) if one else None for one in there]
    steps, lengths = Steps(x, *found), next(each, None)
    d_out, *d_final = gradients
    zero = torch.zeros_like(steps.h[0, 0])
    count = layer.state_count()
    d_states = [
        torch.stack([zero if d is None else d for d in d_final[which::count]])
        for which in range(count)
    ]
    operands = join_weights(cell, weights)
    d = run_steps_back(cell, operands.hh, steps, lengths, d_out, d_states)
    d_x = [d.sums @ operands.ih] if of_x else []
    of_states = [s for s in (d.h, d.c) if s is not None]
    d_initial = [s[n] for n in range(len(weights)) for s in of_states] if states else []
    return [*d_x, *d_initial, *_weight_gradients(cell, weights, x, steps, d)]


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
        layer, call = fixed.cast(*fixed.call.with_tensors(numbers))
        outputs, states = run_directions(layer, call)
        return flatten_result(((torch.cat(outputs, dim=2),), states))

    return differentiate(run, tensors, needs_input_grad, gradients)
