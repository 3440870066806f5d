"""Count of layer calls in a model; a shared inner model counts at every call.

A file holds a shared model once, but it runs at every call. Thirty models, each of which calls the
previous one twice, are a small file with a billion calls.
"""

from __future__ import annotations

from keras2torch_birnn.errors import invalid, printable
from keras2torch_birnn.limits import MAX_CALLS
from keras2torch_birnn.spec import LayerSpec


def check_call_count(layer: LayerSpec) -> int:
    """Check and return how many calls one call of a layer makes, itself included.

    Raises:
        InvalidModelFileError: too many for straight-line code; the place is the innermost model
            with too many.
    """
    total = 1 + sum(map(check_call_count, layer.parts.values()))
    if layer.graph is not None:
        each = {inner.name: check_call_count(inner) for inner in layer.graph.layers}
        total += sum(each[call.layer] for call in layer.graph.calls)
    if total > MAX_CALLS:
        raise invalid(
            f"its shared models make {total} calls of layers, more than {MAX_CALLS}",
            printable(layer.place),
        )
    return total
