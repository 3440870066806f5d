"""Results of the layers that take long, so that a trial computes only what its change reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from keras2torch_birnn.reference import EQUATIONS
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import LayerSpec, Structure, leaves

# They call no other layers: their results follow from what they are given.
_SLOW = ("LSTM", "GRU", "SimpleRNN", "Conv1D", "Conv2D", "SeparableConv1D", "DepthwiseConv1D")
# Calls of one layer that are kept, the newest ones.
_CALLS = 4


class _Call(NamedTuple):
    """A layer, what it was given (with mask and initial states), and what it gave."""

    layer: LayerSpec
    given: Structure
    result: Result


class KeptResults:
    """Equations that take over a result where layer, inputs, mask and states are the same."""

    def __init__(self) -> None:
        self._calls: dict[str, list[_Call]] = {}

    def equations(self, *, keep: bool) -> Mapping[str, Equation]:
        """Return the reference's equations; keep: note this run's results for later ones."""
        return {
            name: self._kept(equation, keep) if name in _SLOW else equation
            for name, equation in EQUATIONS.items()
        }

    def _kept(self, equation: Equation, keep: bool) -> Equation:
        def run(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
            if layer.config.get("stateful") and context.states is not None:
                return equation(layer, inputs, mask, context)
            given = (inputs, mask, context.initial_state)
            calls = self._calls.setdefault(context.place, [])
            for call in calls:
                if call.layer is layer and are_same(call.given, given):
                    return call.result
            result = equation(layer, inputs, mask, context)
            if keep:
                calls.insert(0, _Call(layer, given, result))
                del calls[_CALLS:]
            return result

        return run


def are_same(one: Structure, other: Structure) -> bool:
    """Tell whether two structures of arrays, or of None, are the same to the last bit."""
    first, second = list(leaves(one)), list(leaves(other))
    return len(first) == len(second) and all(
        a is b or (a is not None and b is not None and np.array_equal(a, b))
        for a, b in zip(first, second, strict=True)
    )
