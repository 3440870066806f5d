"""Masked steps of a port that is right at the steps that count."""

from __future__ import annotations

from functools import partial

from keras2torch_birnn.porting.attention_changes import QUERY_MASK_UNUSED
from keras2torch_birnn.porting.call_graph import path_of
from keras2torch_birnn.porting.candidates import Candidates
from keras2torch_birnn.porting.changes import Change, Maker, followed_by
from keras2torch_birnn.porting.checked_run import first_output
from keras2torch_birnn.porting.layer_changes import is_recurrent
from keras2torch_birnn.porting.observing import keep_valid
from keras2torch_birnn.reference import Trace
from keras2torch_birnn.spec import leaves

# Kinds that tell of the port's values at masked steps.
_AT_MASKED_STEPS = (
    "masked steps",
    "mask missing",
    "mask rule",
    "held state",
    "padding row",
)


def explain_masked_steps(run: Candidates) -> tuple[str, Change | None] | None:
    """Return the call where masked steps of the outputs differ, and the mistake if it is known.

    None: they do not, or torch's own layers give what the port has there.
    """
    if run.same_outputs(run.exact, everywhere=True):
        return None
    usual = _usual_at_masked_steps(run)
    trace = run.compute(usual)
    if trace is None or run.same_outputs(trace, everywhere=True):
        return None
    for path in run.layers:
        for one in run.changes_of(path):
            if one.kind in _AT_MASKED_STEPS:
                found = run.compute([*usual, one])
                if found is not None and run.same_outputs(found, everywhere=True):
                    return path, one
    ends = [path_of(ref) for ref in leaves(run.spec.graph.outputs)]
    masked = [path for path in trace.layers if run.valid.get(path) is not None]
    return next((one for one in masked if not _has_all(run, one, trace)), ends[0]), None


def _usual_at_masked_steps(run: Candidates) -> list[Change]:
    """Return what torch's own layers do at masked steps, where the port has that.

    These are zeros behind packed rows, and an attention that knows no mask of the query.
    """
    usual: list[Change] = []
    for path, layer in run.layers.items():
        valid = run.valid.get(path)
        if valid is None or valid.all():
            continue
        if is_recurrent(layer):
            zeros = followed_by(partial(keep_valid, valid=valid))
            own = [Maker(path, layer).change("masked steps", "", zeros)]
        elif layer.class_name == "MultiHeadAttention":
            own = [one for one in run.changes_of(path) if one.words == QUERY_MASK_UNUSED]
        else:
            continue
        trace = run.compute([*usual, *own])
        if trace is not None and path in trace.layers and _has_all(run, path, trace):
            usual += own
    return usual


def _has_all(run: Candidates, path: str, trace: Trace) -> bool:
    """Tell whether the port computed the output of a call at masked steps, too."""
    return run.run.has(first_output(trace, path))
