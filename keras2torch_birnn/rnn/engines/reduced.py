"""Layers in the precision of ``set_precision``: by the native kernel, or refused.

Nothing else computes these numbers, so there is nothing to choose.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.limits import MAX_INT8_ROW
from keras2torch_birnn.rnn.engines import requested_engine
from keras2torch_birnn.rnn.layer import (
    RnnCall,
    RnnLayer,
    RnnResult,
    float_tensors,
    needs_gradient,
)
from keras2torch_birnn.rnn.native.codes import ReducedPrecision
from keras2torch_birnn.rnn.native.library import find_sets, why_missing, why_no_precision
from keras2torch_birnn.rnn.native.op import can_run, reduced_instruction_set, run_native
from keras2torch_birnn.rnn.tensor_memory import is_exporting_by_torch, is_plain
from keras2torch_birnn.rnn.torch_private import mark_constant

_BACK = 'k2t.set_precision(model, "float32")'


# torch.compile cannot follow them to the library.
_why_missing = mark_constant(why_missing)
_why_no_precision = mark_constant(why_no_precision)
_kernel_bit = mark_constant(reduced_instruction_set)


class Refusal(NamedTuple):
    """Why a layer cannot run in reduced precision, and what to do."""

    message: str
    advice: str


def why_not_layer(layer: RnnLayer, precision: ReducedPrecision) -> Refusal | None:
    """Return why no call of a layer can run in a precision; None if there is no such reason."""
    if reason := _why_missing():
        return Refusal(f"there is no native kernel: {reason}", f"install it, or {_BACK}")
    if reason := _why_no_precision(precision):
        return Refusal(reason, f"use {_BACK}")
    if not layer.cell.codes:
        return Refusal("the native kernel lacks an activation of this layer", f"use {_BACK}")
    weight = layer.get_weight_ih()
    if not weight.is_cpu or weight.dtype is not torch.float32:
        found = f"float32 weights on the CPU are needed, found {weight.dtype} on {weight.device}"
        return Refusal(found, f'use model.float().to("cpu"), or {_BACK}')
    row = max(weight.shape[1], layer.get_weight_hh().shape[1])
    if precision == "int8" and row > MAX_INT8_ROW:
        return Refusal(f"sums of {row} products exceed 32 bits", "use bfloat16")
    return None


def why_not_call(layer: RnnLayer, call: RnnCall, precision: ReducedPrecision) -> Refusal | None:
    """Return why a call cannot run in a precision; None if it can."""
    if (refusal := why_not_layer(layer, precision)) is not None:
        return refusal
    if (engine := requested_engine(layer.engine)) not in ("auto", "native"):
        return Refusal(f"engine {engine} computes float32", f"use engine auto, or {_BACK}")
    if is_exporting_by_torch():
        return Refusal("what is exported computes float32", f"use {_BACK} before")
    if needs_gradient(layer, call):
        return Refusal(
            "there is no gradient", f"compute within torch.inference_mode(), or {_BACK} to train"
        )
    if layer.drops():
        return Refusal("there is no dropout", f"use model.eval(), or {_BACK}")
    plain = can_run(float_tensors(layer, call))
    if call.lengths is not None and not torch.compiler.is_compiling():
        plain = plain and is_plain((call.lengths,))
    return None if plain else Refusal("plain float32 tensors on the CPU are needed", f"use {_BACK}")


def check_call(layer: RnnLayer, call: RnnCall, precision: ReducedPrecision) -> None:
    """Refuse a call that cannot run in a precision: float32 in its place would not be noticed.

    Raises:
        UsageError: it cannot.
    """
    if (refusal := why_not_call(layer, call, precision)) is not None:
        raise UsageError(f"precision {precision}: {refusal.message}", refusal.advice)


def explain_reduced(precision: ReducedPrecision) -> str:
    """Return the instruction set that computes a precision, as the reason for an engine."""
    return f"{precision} by {next(iter(find_sets(precision)))}"


def run_reduced(precision: ReducedPrecision, layer: RnnLayer, call: RnnCall) -> RnnResult:
    """Compute a layer's outputs and final states in a reduced precision."""
    return run_native(layer, call, _kernel_bit(precision))
