"""The engine "native": our own C++ kernel, float32 on CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.rnn.engines import native_pays
from keras2torch_birnn.rnn.engines.loop import run_directions
from keras2torch_birnn.rnn.layer import (
    RnnCall,
    RnnLayer,
    RnnResult,
    float_tensors,
    group_states,
    needs_gradient,
    with_float_tensors,
)
from keras2torch_birnn.rnn.native.gradient import gradient, run_keeping
from keras2torch_birnn.rnn.native.library import why_missing
from keras2torch_birnn.rnn.native.op import can_run, run_native
from keras2torch_birnn.rnn.tensor_memory import is_exporting_by_torch, is_plain
from keras2torch_birnn.rnn.torch_private import mark_constant
from keras2torch_birnn.schema.merge_modes import merge_outputs

# It looks for files, where torch.compile cannot follow.
_why_missing = mark_constant(why_missing)


def pays(layer: RnnLayer, rows: int) -> bool:
    """Return whether the kernel is the fastest engine for so many rows without a mask."""
    weights = layer.get_weight_hh().numel()
    return layer.cell.kernel is None or native_pays(layer.cell.kind, rows, weights)


REASON = "measured the fastest for float32 on CPU"


def why_not(layer: RnnLayer, call: RnnCall) -> str:
    """Return why the kernel cannot run a call."""
    if missing := _why_missing():
        return missing
    if not layer.cell.codes:
        return "the native kernel lacks an activation of this layer"
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
    if call.lengths is None and not layer.drops() and not pays(layer, call.x.shape[0]):
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
    return run_native(layer, call)


# ---- The way back -------------------------------------------------------------------------------


def run_with_gradient(layer: RnnLayer, call: RnnCall) -> RnnResult:
    """Run the native kernel so that autograd can differentiate the result."""
    if layer.training and layer.cell.has_native_gradient():
        return _run_keeping(layer, call)
    recomputed: Any = _Recomputed
    flat: tuple[Tensor, ...]
    flat = recomputed.apply(layer, _without_tensors(call), *float_tensors(layer, call))
    each = layer.state_count()
    outputs = len(flat) - layer.count_directions() * each
    return flat[:outputs], group_states(flat[outputs:], each)


def _run_keeping(layer: RnnLayer, call: RnnCall) -> RnnResult:
    """Run with values kept for the gradient; the merge is torch's, with its gradient.

    By the kernel, or by the loop where the kernel has no derivative of an activation.
    """
    if not layer.cell.has_native_gradient():
        outputs, finals = run_directions(layer, call)
        return merge_outputs(outputs, call.merge), finals
    kept: Any = _Kept
    out, final = kept.apply(layer, _without_tensors(call), *float_tensors(layer, call))
    finals = group_states(final.unbind(0), layer.state_count())
    if call.merge == "concat":
        return (out,), finals
    return merge_outputs(out.chunk(layer.count_directions(), dim=2), call.merge), finals


def _without_tensors(call: RnnCall) -> RnnCall:
    """Return a call for autograd to keep, whose tensors it saves itself."""
    return call._replace(x=_NOTHING, initial_state=None, return_state=True)


_NOTHING = torch.empty(0)


def _flatten(result: RnnResult) -> tuple[Tensor, ...]:
    """Return the outputs and then the states, direction by direction."""
    return *result[0], *(s for state in result[1] for s in state)


class _Recomputed(torch.autograd.Function):
    """Forward by the native kernel; backward runs the layer once more, keeping what it needs.

    Most calls in evaluation mode never ask for the gradient that they allow. Activations of which
    the kernel has no derivative train in this way, too.
    """

    @staticmethod
    def forward(ctx: Any, layer: RnnLayer, call: RnnCall, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the kernel. tensors: of ``float_tensors``."""
        ctx.save_for_backward(*tensors)
        ctx.given = layer, call
        return _flatten(run_native(*with_float_tensors(layer, call, tensors)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return gradients of x, states and weights."""
        saved = ctx.saved_tensors
        _check_once((*saved, *gradients))
        layer, call = ctx.given
        pairs = zip(saved, ctx.needs_input_grad[2:], strict=True)
        tensors = [t.detach().requires_grad_(need) for t, need in pairs]
        with torch.enable_grad():
            results = _flatten(_run_keeping(*with_float_tensors(layer, call, tensors)))
        wanted = [t for t in tensors if t.requires_grad]
        found = iter(torch.autograd.grad(results, wanted, gradients, allow_unused=True))
        return None, None, *(next(found) if t.requires_grad else None for t in tensors)


class _Kept(torch.autograd.Function):
    """Forward and backward by the native kernel."""

    @staticmethod
    def forward(
        ctx: Any, layer: RnnLayer, call: RnnCall, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return outputs side by side and final states. tensors: of ``float_tensors``."""
        out, final, kept = run_keeping(*with_float_tensors(layer, call, tensors))
        ctx.save_for_backward(*tensors, *kept)
        ctx.given = layer, call
        ctx.set_materialize_grads(False)
        return out, final

    @staticmethod
    def backward(
        ctx: Any, d_out: Tensor | None, d_final: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return gradients of x, states and weights."""
        saved = ctx.saved_tensors  # call for once: inside a checkpoint they are recomputed then
        _check_once([d for d in (d_out, d_final, *saved) if d is not None])
        layer, call = ctx.given
        directions = layer.count_directions()
        layer, call = with_float_tensors(layer, call, saved[:-directions])
        d_x, d_start, d_parameters = gradient(
            layer, call, saved[-directions:], d_out, d_final, of_x=ctx.needs_input_grad[2]
        )
        present = [d for d, p in zip(d_parameters, layer.parameters, strict=True) if p is not None]
        return None, None, d_x, *d_start[: len(call.states())], *present


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
