"""Choose the engine of a call of a layer, and run it: the only entry to the engines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from keras2torch_birnn.rnn import engines
from keras2torch_birnn.rnn.cell_kind import CELL_KINDS
from keras2torch_birnn.rnn.checks import check_shape
from keras2torch_birnn.rnn.engines import (
    Choice,
    loop,
    native,
    refusal,
    requested_engine,
    torch_kernel,
)
from keras2torch_birnn.rnn.engines.reduced import check_call, explain_reduced, run_reduced
from keras2torch_birnn.rnn.layer import DropoutMasks, RnnCall, RnnLayer, RnnResult
from keras2torch_birnn.rnn.tensor_memory import refuse_tracing
from keras2torch_birnn.schema.merge_modes import merge_outputs

# Computes the outputs, apart or merged as the call asks, and the final states.
Compute: TypeAlias = Callable[[RnnLayer, RnnCall], RnnResult]


def choose(layer: RnnLayer, call: RnnCall) -> tuple[Choice, Compute]:
    """Choose the engine of one call: the forced one, or the first without a reason against it.

    Raises:
        UsageError: the forced engine cannot run the call, or does not exist.
    """
    wanted = layer.engine or engines.REQUESTED
    if wanted not in engines.REQUESTS:
        wanted = requested_engine(layer.engine)  # which refuses it
    if wanted in ("auto", "native"):
        lacks = native.why_not(layer, call)
        if wanted == "native":
            if lacks:
                raise refusal("native", lacks)
            return Choice("native", "chosen"), native.run
        if not (lacks or native.why_skip(layer, call)):
            return Choice("native", native.REASON), native.run
    if wanted == "loop":
        return Choice("loop", "chosen"), loop.run_directions
    if layer.cell.kernel is None:
        if wanted == "fused":
            raise refusal("fused", "torch has no kernel for this layer")
        reason = "neither torch nor the native kernel computes this call"
        return Choice("loop", reason), loop.run_directions
    if skipped := torch_kernel.why_skip(layer, call):  # although it may be forced
        return Choice("loop", skipped), loop.run_directions
    reason = "chosen" if wanted == "fused" else "torch's own kernel"
    return Choice("fused", reason), torch_kernel.run


def run(layer: RnnLayer, call: RnnCall) -> RnnResult:
    """Compute a layer's outputs and final states by the selected engine.

    The outputs of both directions are merged here, unless the engine did so as it computed.

    Raises:
        UsageError: the forced engine or the chosen precision cannot run this call, or x does not
            fit the weights; or torch.jit traces it.
    """
    refuse_tracing()
    check_shape(call.x.shape, layer.get_weight_ih().shape[1])
    if layer.precision is None:
        _, compute = choose(layer, call)
    else:
        check_call(layer, call, layer.precision)
        compute = partial(run_reduced, layer.precision)
    if call.x.shape[1] == 0:
        # The outputs (B, 0, H) depend on x and a weight, which so have gradients of zero.
        empty = call.x.sum(dim=2, keepdim=True)
        outputs = tuple(empty * w.hh[0] for w in layer.get_weights())
        states = call.initial_state or layer.zero_states(call.x)
    else:
        outputs, states = compute(layer, draw_masks(layer, call.outside_inference()))
    return merge_outputs(outputs, call.merge), states


def explain_layer(layer: RnnLayer, batch: int, *, masked: bool) -> Choice:
    """Return the engine and the reason for a call of this batch size.

    Raises:
        UsageError: the forced engine or the chosen precision cannot run the call.
    """
    weight = layer.get_weight_ih()
    x = weight.detach().new_zeros(batch, 1, weight.shape[1])
    call = RnnCall(x, torch.ones(batch, dtype=torch.int64) if masked else None)
    if layer.precision is not None:
        check_call(layer, call, layer.precision)
        return Choice("native", explain_reduced(layer.precision))
    chosen, _ = choose(layer, call)
    return chosen


# ---- Masks of dropout: one for all steps, drawn before the first --------------------------------


def draw_masks(layer: RnnLayer, call: RnnCall) -> RnnCall:
    """Return the call with masks for each direction, if the layer drops now."""
    if layer.dropout is None or not layer.drops():
        return call
    rates, x = layer.dropout, call.x
    copies = CELL_KINDS[layer.cell.kind].gates if rates.per_gate else 1
    units = layer.get_weight_hh().shape[1]
    # The order decides which random numbers a mask gets.
    masks = tuple(
        DropoutMasks(
            _draw(x[:, 0], copies, rates.inputs),
            _draw(x.new_zeros(x.shape[0], units), copies, rates.recurrent),
        )
        for _ in range(layer.count_directions())
    )
    return call._replace(masks=masks)


def _draw(like: Tensor, copies: int, rate: float) -> tuple[Tensor, ...]:
    """Draw masks, 0 or 1 / (1 - rate); none unless 0 < rate < 1, as in Keras."""
    if not 0.0 < rate < 1.0:
        return ()
    return tuple(functional.dropout(torch.ones_like(like), rate) for _ in range(copies))
