"""Results of single layers, so that a trial computes only what its change reaches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from keras2torch_birnn.reference import EQUATIONS
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import LayerSpec, Structure, leaves

# Calls of one layer that are kept, the newest ones.
_CALLS = 4
# Values of results with changes that are kept, of the newest ones.
_VALUES = 1 << 23


class _Call(NamedTuple):
    """A layer, what it was given (with mask and initial states), and what it gave."""

    layer: LayerSpec
    arguments: Structure
    options: Mapping[str, Any]
    result: Result

    def answers(self, layer: LayerSpec, inputs: Structure, context: Context) -> bool:
        """Tell whether a call of this layer with these arguments gives the same."""
        return (
            self.layer is layer
            and self.options == context.call_options
            and are_same(self.arguments, inputs)
        )


class KeptResults:
    """Equations that take over a result where layer, inputs, mask and states are the same."""

    def __init__(self, model: LayerSpec) -> None:
        self._calls: dict[str, list[_Call]] = {}
        self._changed: OrderedDict[tuple[Any, ...], _Call] = OrderedDict()
        self._room = _VALUES
        every = list(model.walk())
        self._classes = sorted({layer.class_name for layer in every} & EQUATIONS.keys())
        # What calls other layers is computed each time: its result follows from theirs.
        self._outer = {one.class_name for one in every if one.parts or one.graph is not None}

    def equations(self, *, keep: bool) -> Mapping[str, Equation]:
        """Return the equations of the model's classes; keep: note this run's results."""
        return {
            name: EQUATIONS[name] if name in self._outer else self._kept(EQUATIONS[name], keep)
            for name in self._classes
        }

    def compute_changed(
        self,
        applied: tuple[Any, ...],
        equation: Equation,
        layer: LayerSpec,
        inputs: Structure,
        mask: Structure,
        context: Context,
    ) -> Result:
        """Compute an equation with changes, ``applied``, or take over what the last one gave."""
        if layer.class_name in self._outer or _is_carried(layer, context):
            return equation(layer, inputs, mask, context)
        arguments = (inputs, mask, context.initial_state)
        key = (context.path, *applied)
        call = self._changed.get(key)
        if call is None or not call.answers(layer, arguments, context):
            result = equation(layer, inputs, mask, context)
            call = _Call(layer, arguments, context.call_options, result)
            self._keep_changed(key, call)
        return call.result

    def _keep_changed(self, key: tuple[Any, ...], call: _Call) -> None:
        if (old := self._changed.pop(key, None)) is not None:
            self._room += _size(old)
        self._changed[key] = call
        self._room -= _size(call)
        while self._room < 0:
            self._room += _size(self._changed.popitem(last=False)[1])

    def _kept(self, equation: Equation, keep: bool) -> Equation:
        def run(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
            if _is_carried(layer, context):
                return equation(layer, inputs, mask, context)
            arguments = (inputs, mask, context.initial_state)
            calls = self._calls.setdefault(context.place, [])
            for call in calls:
                if call.answers(layer, arguments, context):
                    return call.result
            result = equation(layer, inputs, mask, context)
            if keep:
                calls.insert(0, _Call(layer, arguments, context.call_options, result))
                del calls[_CALLS:]
            return result

        return run


def _is_carried(layer: LayerSpec, context: Context) -> bool:
    """Tell whether a result follows from earlier calls, too."""
    return context.states is not None


def _size(call: _Call) -> int:
    return sum(np.size(leaf) for leaf in leaves((call.arguments, call.result)))


def are_same(first: Structure, second: Structure) -> bool:
    """Tell whether two structures of arrays, or of None, are the same to the last bit."""
    own, there = list(leaves(first)), list(leaves(second))
    return len(own) == len(there) and all(
        a is b or (a is not None and b is not None and np.array_equal(a, b))
        for a, b in zip(own, there, strict=True)
    )
