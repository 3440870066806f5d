"""The engine "native": our own C++ kernel, float32 on CPU."""

from __future__ import annotations

import torch

from keras2torch_birnn.rnn.call import RnnCall, RnnResult
from keras2torch_birnn.rnn.engines.engine import (
    float_tensors,
    needs_gradient,
)
from keras2torch_birnn.rnn.engines.native_gradient import native_cell_of, run_with_gradient
from keras2torch_birnn.rnn.engines.static import SEVERAL, native_pays
from keras2torch_birnn.rnn.layer import RnnLayer
from keras2torch_birnn.rnn.native.library import why_missing
from keras2torch_birnn.rnn.native.op import can_run, run_native
from keras2torch_birnn.rnn.tensor_memory import is_exporting_by_torch, is_plain
from keras2torch_birnn.torch_private import mark_constant

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
