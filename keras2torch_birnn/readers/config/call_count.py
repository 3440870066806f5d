"""Count of layer calls in a model; a shared inner model counts at every call.

A file holds a shared model once, but it runs at every call. Thirty models, each of which calls the
previous one twice, are a small file with a billion calls.
"""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.errors import invalid, printable
from keras2torch_birnn.limits import MAX_CALLS
from keras2torch_birnn.spec import Graph, LayerSpec


def check_call_count(root: LayerSpec) -> None:
    """Refuse a model whose straight-line code would have too many calls.

    Raises:
        InvalidModelFileError: too many calls; the place is the innermost model with too many.
    """
    _calls(root)


def _calls(layer: LayerSpec) -> int:
    """Count the calls that one call of the layer makes, itself included."""
    inner = {key: _calls(part) for key, part in layer.parts.items()}
    total = 1 + sum(inner.values()) + (_graph_calls(layer.graph) if layer.graph else 0)
    if total > MAX_CALLS:
        raise invalid(
            f"its shared models make {total} calls of layers, more than {MAX_CALLS}",
            printable(layer.place),
        )
    return total


def _graph_calls(graph: Graph) -> int:
    each: Mapping[str, int] = {layer.name: _calls(layer) for layer in graph.layers}
    return sum(each[call.layer] for call in graph.calls)
