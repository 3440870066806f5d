"""How much a model computes: calls of layers, those of models in models counted every time.

A file holds a shared model once, but it runs at every call of it. Thirty models, each of which
calls the one before twice, are a small file and a billion calls.
"""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.limits import MAX_CALLS
from keras2torch_birnn.spec import Graph, LayerSpec


def check_calls(root: LayerSpec) -> None:
    """Refuse a model whose straight-line code would have too many calls.

    Raises:
        InvalidModelFileError: it has; the place is the innermost model that has.
    """
    _calls(root)


def _calls(layer: LayerSpec) -> int:
    """Calls that one call of the layer makes, itself included; every layer is looked at once."""
    inner = {key: _calls(part) for key, part in layer.parts.items()}
    total = 1 + sum(inner.values()) + (_graph_calls(layer.graph) if layer.graph else 0)
    if total > MAX_CALLS:
        raise InvalidModelFileError(
            f"its shared models make {total} calls of layers, more than {MAX_CALLS}",
            "refused",
            place=printable(layer.place),
        )
    return total


def _graph_calls(graph: Graph) -> int:
    each: Mapping[str, int] = {layer.name: _calls(layer) for layer in graph.layers}
    return sum(each[call.layer] for call in graph.calls)
