"""Select the engine for a call of a layer, and run it: the only entry to the engines."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import NamedTuple

import torch

from keras2torch_birnn.rnn import engines
from keras2torch_birnn.rnn.call import RnnCall, RnnResult
from keras2torch_birnn.rnn.dropout_masks import draw_masks
from keras2torch_birnn.rnn.engines import (
    ENGINES,
    REQUESTS,
    Choice,
    EngineName,
    EngineRow,
    candidates,
    refusal,
    requested_engine,
)
from keras2torch_birnn.rnn.engines.engine import Engine, run_no_steps
from keras2torch_birnn.rnn.engines.reduced import explain_reduced, run_reduced
from keras2torch_birnn.rnn.layer import RnnLayer
from keras2torch_birnn.rnn.tensor_checks import check_shape
from keras2torch_birnn.rnn.tensor_memory import refuse_tracing


class Candidate(NamedTuple):
    """A row of ``ENGINES`` and the engine that its module holds."""

    row: EngineRow
    engine: Engine


def _load(row: EngineRow) -> Candidate:
    return Candidate(row, import_module(f"{engines.__name__}.{row.module}").ENGINE)


_ALL = tuple(map(_load, ENGINES))
# By the name that is requested.
_CANDIDATES: Mapping[str, tuple[Candidate, ...]] = {
    name: tuple(each for each in _ALL if each.row in candidates(name)) for name in REQUESTS
}


def engine_of(name: EngineName) -> Engine:
    """Return the engine of this name."""
    ((_, engine),) = _CANDIDATES[name]
    return engine


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
    engine = select_engine(layer, call).engine
    if call.x.shape[1] == 0:
        return run_no_steps(layer, call)
    return engine.run(layer, draw_masks(layer, call.outside_inference()))


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
    row, engine = select_engine(layer, call)
    forced = row.name == _requested(layer)
    return Choice(row.name, "chosen" if forced else engine.reason(layer, call))


def select_engine(layer: RnnLayer, call: RnnCall) -> Candidate:
    """Select the engine of one call: the forced one, or the first without a reason against it.

    Raises:
        UsageError: the forced engine cannot run the call, or does not exist.
    """
    found = _list_candidates(layer)
    if len(found) == 1:
        ((row, engine),) = found
        if reason := engine.why_not(layer, call):
            raise refusal(row, reason)
        if not (engine.skips_if_forced and engine.why_skip(layer, call)):
            return found[0]
        found = _ALL[_ALL.index(found[0]) + 1 :]
    for candidate in found:
        engine = candidate.engine
        if not (engine.why_not(layer, call) or engine.why_skip(layer, call)):
            break
    return candidate


def _requested(layer: RnnLayer) -> str:
    return layer.engine or engines.REQUESTED


def _list_candidates(layer: RnnLayer) -> tuple[Candidate, ...]:
    found = _CANDIDATES.get(_requested(layer))
    return found or _CANDIDATES[requested_engine(layer.engine)]
