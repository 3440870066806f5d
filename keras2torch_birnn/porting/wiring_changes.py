"""Known mistakes in how layers are connected: an input of a layer is another tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

import numpy as np

from keras2torch_birnn.errors import printable
from keras2torch_birnn.porting.call_graph import call_path
from keras2torch_birnn.porting.changes import Apply, Change
from keras2torch_birnn.reference import Trace
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import (
    Array,
    Graph,
    LayerSpec,
    Structure,
    TensorRef,
    leaves,
    map_structure,
)


def wiring_changes(graph: Graph, path: str, trace: Trace) -> Iterator[Change]:
    """Yield a change for each earlier tensor that could stand in the place of one of the inputs.

    path: a call of this graph; layers with one input are left alone: what is before them is wrong.
    """
    earlier: dict[TensorRef, Array] = {}
    for ref in leaves(graph.inputs):
        earlier[ref] = np.asarray(trace.layers[call_path(ref.layer, ref.call)])
    for call in graph.calls:
        if call_path(call.layer, call.index) == path:
            found = list(leaves(call.args))
            layer = graph.layer(call.layer)
            break
        for number, array in enumerate(leaves(trace.layers[call_path(call.layer, call.index)])):
            earlier[TensorRef(call.layer, call.index, number)] = np.asarray(array)
    else:
        return
    refs = [(place, ref) for place, ref in enumerate(found) if isinstance(ref, TensorRef)]
    for place, ref in refs if len(refs) > 1 else ():
        right = earlier[ref]
        for other, array in earlier.items():
            if array.shape == right.shape and not np.array_equal(array, right):
                there, own = (_describe(one, earlier) for one in (other, ref))
                words = f"its input {place + 1} is {there}, Keras has {own}"
                apply = _given(path, place, other)
                yield Change("other input", path, words, {(call.layer, layer.class_name): apply})


def _describe(ref: TensorRef, known: Mapping[TensorRef, Array]) -> str:
    """Name a tensor by the call that returns it, and by its number if there are several."""
    several = TensorRef(ref.layer, ref.call, 1) in known
    number = f" {ref.output + 1}" if several else ""
    return f"the output{number} of {printable(call_path(ref.layer, ref.call))}"


def _given(path: str, place: int, other: TensorRef) -> Apply:
    """Give the layer another tensor in this place of its inputs, in this call alone."""

    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        if context.path != path:
            return equation(layer, inputs, mask, context)
        value = list(leaves(context.layers[call_path(other.layer, other.call)]))[other.output]
        numbers = count()
        changed = map_structure(lambda leaf: value if next(numbers) == place else leaf, inputs)
        return equation(layer, changed, mask, context)

    return apply
