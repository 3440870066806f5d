"""Choose the engine of a call of a layer, and run it: the only entry to the engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from keras2torch_birnn.rnn import engines
from keras2torch_birnn.rnn.call import DropoutMasks, RnnCall, RnnResult
from keras2torch_birnn.rnn.cell_kind import CELL_KINDS
from keras2torch_birnn.rnn.engines import (
    Choice,
    EngineName,
    loop,
    native,
    refusal,
    requested_engine,
    torch_kernel,
)
from keras2torch_birnn.rnn.engines.engine import run_no_steps
from keras2torch_birnn.rnn.engines.reduced import explain_reduced, run_reduced
from keras2torch_birnn.rnn.layer import RnnLayer
from keras2torch_birnn.rnn.tensor_checks import check_shape
from keras2torch_birnn.rnn.tensor_memory import refuse_tracing


class Chosen(NamedTuple):
    """The engine of a call, why it was chosen, and what computes it."""

    engine: EngineName
    reason: str
    run: Callable[[RnnLayer, RnnCall], RnnResult]


def choose(layer: RnnLayer, call: RnnCall) -> Chosen:
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
            return Chosen("native", "chosen", native.run)
        if not (lacks or native.why_skip(layer, call)):
            return Chosen("native", native.REASON, native.run)
    if wanted == "loop":
        return Chosen("loop", "chosen", loop.run_directions)
    if lacks := torch_kernel.why_not(layer):
        if wanted == "fused":
            raise refusal("fused", lacks)
        reason = "neither torch nor the native kernel computes this call"
        return Chosen("loop", reason, loop.run_directions)
    if skipped := torch_kernel.why_skip(layer, call):  # although it may be forced
        return Chosen("loop", skipped, loop.run_directions)
    reason = "chosen" if wanted == "fused" else "torch's own kernel"
    return Chosen("fused", reason, torch_kernel.run)


def run(layer: RnnLayer, call: RnnCall) -> RnnResult:
    """Compute a layer's outputs and final states by the selected engine.

    Raises:
        UsageError: the forced engine or the chosen precision cannot run this call, or x does not
            fit the weights; or torch.jit traces it.
    """
    refuse_tracing()
    check_shape(call.x.shape, layer.get_weight_ih().shape[1])
    if layer.precision is not None:
        return run_reduced(layer, call, layer.precision)
    chosen = choose(layer, call)
    if call.x.shape[1] == 0:
        return run_no_steps(layer, call)
    return chosen.run(layer, draw_masks(layer, call.outside_inference()))


def explain_layer(layer: RnnLayer, batch: int, *, masked: bool) -> Choice:
    """Return the engine and the reason for a call of this batch size.

    Raises:
        UsageError: the forced engine cannot run the call.
    """
    weight = layer.get_weight_ih()
    x = weight.detach().new_zeros(batch, 1, weight.shape[1])
    return explain_call(layer, RnnCall(x, torch.ones(batch, dtype=torch.int64) if masked else None))


def explain_call(layer: RnnLayer, call: RnnCall) -> Choice:
    """Return the engine of one call and the reason.

    Raises:
        UsageError: the forced engine or the chosen precision cannot run the call.
    """
    if layer.precision is not None:
        return explain_reduced(layer, call, layer.precision)
    chosen = choose(layer, call)
    return Choice(chosen.engine, chosen.reason)


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
