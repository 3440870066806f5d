"""The engine "native": our own C++ kernel, float32 on CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.rnn.call import RnnCall, RnnResult, flatten_result, group_states
from keras2torch_birnn.rnn.engines.engine import (
    FixedCall,
    float_tensors,
    needs_gradient,
)
from keras2torch_birnn.rnn.engines.static import SEVERAL, native_pays
from keras2torch_birnn.rnn.layer import RnnLayer
from keras2torch_birnn.rnn.native.gradient import gradient, run_keeping
from keras2torch_birnn.rnn.native.library import NativeCell, why_missing
from keras2torch_birnn.rnn.native.op import can_run, run_native
from keras2torch_birnn.rnn.tensor_memory import is_exporting_by_torch, is_plain
from keras2torch_birnn.rnn.torch_private import mark_constant
from keras2torch_birnn.schema.merge_modes import merge_outputs

# It looks for files, where torch.compile cannot follow.
_why_missing = mark_constant(why_missing)


def pays_for_any_rows(layer: RnnLayer) -> bool:
    """Return whether the kernel is the fastest engine for any batch size without a mask."""
    weights = layer.get_weight_hh().numel()
    return layer.kernel is None or native_pays(layer.cell.kind, SEVERAL, weights)


REASON = "measured the fastest for float32 on CPU"


def why_not(layer: RnnLayer, call: RnnCall) -> str:
    """Return why the kernel cannot run a call."""
    if layer.native is None:
        return _why_missing() or "the native kernel lacks an activation of this layer"
    if not can_run(float_tensors(layer, call)):
        return "the kernel computes float32 on CPU, from plain tensors"
    if layer.drops() and torch.compiler.is_compiling():
        return "the kernel's operator in compiled graphs has no dropout"
    if call.lengths is not None and not torch.compiler.is_compiling():
        return "" if is_plain((call.lengths,)) else "the lengths are not a plain tensor"
    return ""


def why_skip(layer: RnnLayer, call: RnnCall) -> str:
    """Return why torch's engines are the better ones for a call."""
    if is_exporting_by_torch():
        return "an exported graph must not need the kernel"
    weights = layer.get_weight_hh().numel()
    has_other = layer.kernel is not None and call.lengths is None and not layer.drops()
    if has_other and not native_pays(layer.cell.kind, call.x.shape[0], weights):
        return "torch's kernel is faster"
    if not needs_gradient(layer, call):
        return ""
    if torch.compiler.is_compiling():
        return "torch.compile differentiates torch's engines"
    return ""


def run(layer: RnnLayer, call: RnnCall) -> RnnResult:
    """Run the kernel, with autograd if a gradient may be wanted."""
    if needs_gradient(layer, call):
        return run_with_gradient(layer, call)
    return run_native(native_cell_of(layer), layer.parameters, call)


# ---- The way back -------------------------------------------------------------------------------


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
        """Return gradients of x, states and weights."""
        saved = ctx.saved_tensors
        _check_once((*saved, *gradients))
        pairs = zip(saved, ctx.needs_input_grad[1:], strict=True)
        tensors = [t.detach().requires_grad_(need) for t, need in pairs]
        with torch.enable_grad():
            results = flatten_result(_run_keeping(*ctx.fixed.with_tensors(tensors)))
        wanted = [t for t in tensors if t.requires_grad]
        found = iter(torch.autograd.grad(results, wanted, gradients, allow_unused=True))
        return None, *(next(found) if t.requires_grad else None for t in tensors)


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
        """Return gradients of x, states and weights."""
        saved = ctx.saved_tensors  # call for once: inside a checkpoint they are recomputed then
        _check_once([d for d in (d_out, d_final, *saved) if d is not None])
        return None, *_gradients_by_kernel(ctx.fixed, ctx.needs_input_grad, d_out, d_final, saved)


def _check_once(tensors: Sequence[Tensor]) -> None:
    """Refuse gradients that are to be differentiated, batched or pushed forward.

    Raises:
        UsageError: they are.
    """
    if torch.is_grad_enabled() or not is_plain(tensors):
        raise UsageError(
            "the native kernel's gradients have no gradients, and come one at a time",
            'use k2t.set_engine(model, "torch")',
        )


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
