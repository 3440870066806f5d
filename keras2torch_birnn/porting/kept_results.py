"""Results of single layers, so that a trial computes only what its change reaches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from keras2torch_birnn.porting.changes import LayerCall
from keras2torch_birnn.reference import EQUATIONS
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import LayerSpec, Structure, leaves

# Values that are kept at most, of the newest calls: what they were given, and their results.
_VALUES = 1 << 23


class _KeptCall(NamedTuple):
    """A layer, what it was given (with mask and initial states), and what it gave."""

    layer: LayerSpec
    arguments: Structure
    options: Mapping[str, Any]
    result: Result

    def is_repeated(self, layer: LayerSpec, arguments: Structure, context: Context) -> bool:
        """Tell whether this is the same layer, called with the very same arrays."""
        if self.layer is not layer or self.options != context.call_options:
            return False
        first, second = list(leaves(self.arguments)), list(leaves(arguments))
        return len(first) == len(second) and all(map(is_, first, second))


class KeptResults:
    """Equations that take over a result where layer, inputs, mask and states are the same."""

    def __init__(self, model: LayerSpec) -> None:
        self._calls: OrderedDict[Hashable, _KeptCall] = OrderedDict()
        self._noted: dict[str, _KeptCall] = {}
        self._room = _VALUES
        every = list(model.walk())
        classes = sorted({layer.class_name for layer in every} & EQUATIONS.keys())
        # The equations of the model's classes, without results that are kept.
        self.anew: Mapping[str, Equation] = {name: EQUATIONS[name] for name in classes}
        # What calls other layers is computed each time: its result follows from theirs.
        self._outer = {one.class_name for one in every if one.parts or one.graph is not None}

    def equations(self, *, note: bool) -> Mapping[str, Equation]:
        """Return the equations of the model's classes.

        note: remember this run's calls, to which those of later runs are compared first.
        """
        return {
            name: one if name in self._outer else self._kept(one, note)
            for name, one in self.anew.items()
        }

    def _kept(self, equation: Equation, note: bool) -> Equation:
        def run(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
            if context.states is not None:  # they carry what was before
                return equation(layer, inputs, mask, context)
            arguments = (inputs, mask, context.initial_state)
            call = self._noted.get(context.path)
            if call is None or not call.is_repeated(layer, arguments, context):
                call = self._find((), LayerCall(equation, layer, inputs, mask, context))
            if note:
                self._noted[context.path] = call
            return call.result

        return run

    def compute_changed(self, applied: tuple[Any, ...], call: LayerCall) -> Result:
        """Compute a call with changes, ``applied``, or take over what it gave before."""
        if call.layer.class_name in self._outer or call.context.states is not None:
            return call.run()
        return self._find((call.context.path, *applied), call).result

    def _find(self, key: tuple[Any, ...], call: LayerCall) -> _KeptCall:
        """Return the call of such a layer with the same values, which is made if there is none."""
        arguments = (call.inputs, call.mask, call.context.initial_state)
        options = call.context.call_options
        values = map(_content, leaves(arguments))
        key = (*key, _identify(call.layer), *options.items(), *values)
        known = _is_hashable(key)
        kept = self._calls.get(key) if known else None
        if kept is None:
            kept = _KeptCall(call.layer, arguments, options, call.run())
            self._room -= _size(kept) if known else 0
        if known:
            self._calls[key] = kept
            self._calls.move_to_end(key)
        while self._room < 0:
            self._room += _size(self._calls.popitem(last=False)[1])
        return kept


def compute_anew(_: tuple[Any, ...], call: LayerCall) -> Result:
    """Compute a call with changes, and keep nothing."""
    return call.run()


def _identify(layer: LayerSpec) -> Hashable:
    """Return what tells a layer from others with other options or weights, as long as it lives."""
    own = (
        layer.class_name,
        *layer.config.items(),
        *layer.semantics.items(),
        *((name, id(array)) for name, array in layer.weights.items()),
        *((name, id(part)) for name, part in layer.parts.items()),
    )
    return own if _is_hashable(own) else id(layer)


def _content(leaf: Any) -> Hashable:
    """Return what only arrays of the same values have, to the last bit; of others themselves."""
    return (leaf.shape, leaf.dtype, leaf.tobytes()) if isinstance(leaf, np.ndarray) else leaf


def _is_hashable(key: tuple[Any, ...]) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _size(call: _KeptCall) -> int:
    return sum(np.size(leaf) for leaf in leaves((call.arguments, call.result)))


def are_same(one: Structure, other: Structure) -> bool:
    """Tell whether two structures of arrays, or of None, are the same to the last bit."""
    first, second = list(leaves(one)), list(leaves(other))
    return len(first) == len(second) and all(
        a is b or (a is not None and b is not None and np.array_equal(a, b))
        for a, b in zip(first, second, strict=True)
    )
