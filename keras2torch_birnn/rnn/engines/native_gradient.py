"""Gradients of the engine "native": by the native kernel, or by a second run within torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from keras2torch_birnn.merge_modes import merge_outputs
from keras2torch_birnn.rnn.call import RnnCall, RnnResult, flatten_result, group_states
from keras2torch_birnn.rnn.engines import loop, torch_kernel
from keras2torch_birnn.rnn.engines.engine import FixedCall, float_tensors
from keras2torch_birnn.rnn.engines.rerun import differentiate
from keras2torch_birnn.rnn.layer import RnnLayer
from keras2torch_birnn.rnn.native.gradient import gradient, run_keeping
from keras2torch_birnn.rnn.native.library import NativeCell
from keras2torch_birnn.rnn.native.op import run_native
from keras2torch_birnn.rnn.tensor_memory import have_tangents, is_plain


def run_with_gradient(layer: RnnLayer, call: RnnCall) -> RnnResult:
    """Run the native kernel so that autograd can differentiate the result."""
    if layer.training:
        return _run_keeping(layer, call)
    recomputed: Any = _Recomputed
    flat: tuple[Tensor, ...]
    flat = recomputed.apply(FixedCall.of(layer, call), *float_tensors(layer, call))
    each = layer.state_count()
    outputs = len(flat) - layer.count_directions() * each
    return flat[:outputs], group_states(flat[outputs:], each)


def native_cell_of(layer: RnnLayer) -> NativeCell:
    """Return the cell in the codes of the native kernel.

    Raises:
        TypeError: the kernel does not compute it.
    """
    if layer.native is None:
        raise TypeError("a layer without native cell")
    return layer.native


def _run_keeping(layer: RnnLayer, call: RnnCall) -> RnnResult:
    """Run the kernel with values kept for its gradient; the merge is torch's, with its gradient."""
    kept: Any = _Kept
    fixed = FixedCall.of(layer, call._replace(merge=None))
    out, final = kept.apply(fixed, *float_tensors(layer, call))
    finals = group_states(final.unbind(0), layer.state_count())
    if call.merge == "concat":
        return (out,), finals
    return merge_outputs(out.chunk(layer.count_directions(), dim=2), call.merge), finals


class _Recomputed(torch.autograd.Function):
    """Forward by the native kernel; backward runs the layer once more, keeping what it needs.

    Most calls in evaluation mode never ask for the gradient that they allow.
    """

    @staticmethod
    def forward(ctx: Any, fixed: FixedCall, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the kernel. tensors: of ``float_tensors``."""
        ctx.save_for_backward(*tensors)
        ctx.fixed = fixed
        layer, call = fixed.with_tensors(tensors)
        return flatten_result(run_native(native_cell_of(layer), layer.parameters, call))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return gradients of x, states and weights; they can be differentiated again."""
        return _gradients_by_rerun(ctx.fixed, ctx.saved_tensors, ctx.needs_input_grad, gradients)


class _Kept(torch.autograd.Function):
    """Forward and backward by the native kernel."""

    @staticmethod
    def forward(ctx: Any, fixed: FixedCall, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs side by side and final states. tensors: of ``float_tensors``."""
        layer, call = fixed.with_tensors(tensors)
        out, final, kept = run_keeping(native_cell_of(layer), layer.get_weights(), call)
        ctx.save_for_backward(*tensors, *kept)
        ctx.fixed = fixed
        ctx.set_materialize_grads(False)
        return out, final

    @staticmethod
    def backward(
        ctx: Any, d_out: Tensor | None, d_final: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return gradients of x, states and weights; they can be differentiated again."""
        fixed, needed = ctx.fixed, ctx.needs_input_grad
        saved = ctx.saved_tensors  # call for once: inside a checkpoint they are recomputed then
        if torch.is_grad_enabled() or not is_plain(
            [d for d in (d_out, d_final, *saved) if d is not None]
        ):
            # The kernel's own gradients have none.
            tensors = saved[: -fixed.layer.count_directions()]
            return _gradients_by_torch(
                fixed, tensors, needed, _flatten_gradients(fixed, d_out, d_final)
            )
        return None, *_gradients_by_kernel(fixed, needed, d_out, d_final, saved)


def _gradients_by_kernel(
    fixed: FixedCall,
    needed: Sequence[bool],
    d_out: Tensor | None,
    d_final: Tensor | None,
    saved: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of ``float_tensors``. saved: these, and what the run kept."""
    directions = fixed.layer.count_directions()
    layer, call = fixed.with_tensors(saved[:-directions])
    d_x, d_start, d_parameters = gradient(
        native_cell_of(layer),
        layer.get_weights(),
        call,
        saved[-directions:],
        d_out,
        d_final,
        of_x=needed[1],
    )
    present = [
        d
        for direction, weights in zip(d_parameters, layer.get_weights(), strict=True)
        for d, p in zip(direction, weights, strict=True)
        if p is not None
    ]
    return d_x, *d_start[: fixed.states], *present


def _flatten_gradients(
    fixed: FixedCall, d_out: Tensor | None, d_final: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Split the gradients of ``_Kept``'s results into those of ``flatten_result``."""
    directions = fixed.layer.count_directions()
    none = (None,) * directions
    outputs = none if d_out is None else d_out.chunk(directions, dim=2)
    states = none * fixed.layer.state_count() if d_final is None else d_final.unbind(0)
    return *outputs, *states


def _gradients_by_rerun(
    fixed: FixedCall,
    tensors: Sequence[Tensor],
    needs_input_grad: Sequence[bool],
    gradients: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Run once more and differentiate that: by the kernel again, where its gradients will do."""
    given = [*tensors, *(g for g in gradients if g is not None)]
    if torch.is_grad_enabled() or not is_plain(given):
        return _gradients_by_torch(fixed, tensors, needs_input_grad, gradients)

    def run(numbers: Sequence[Tensor]) -> Sequence[Tensor]:
        return flatten_result(_run_keeping(*fixed.with_tensors(numbers)))

    return differentiate(run, tensors, needs_input_grad, gradients)


def _gradients_by_torch(
    fixed: FixedCall,
    tensors: Sequence[Tensor],
    needs_input_grad: Sequence[bool],
    gradients: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Run once more by torch's engines, and differentiate that."""
    # Tensors batched by autograd (is_grads_batched) are no reason for the loop.
    tangents = have_tangents(g for g in gradients if g is not None)

    def run(numbers: Sequence[Tensor]) -> Sequence[Tensor]:
        layer, call = fixed.with_tensors(numbers)
        by_loop = tangents or layer.kernel is None or torch_kernel.ENGINE.why_skip(layer, call)
        return flatten_result((loop if by_loop else torch_kernel).ENGINE.run(layer, call))

    return differentiate(run, tensors, needs_input_grad, gradients)
