"""Which calls of a model's graph depend on which, by their paths.

A path is ``name``, ``name#1`` for the second call of a layer, ``outer/inner`` for a layer inside of
a model, and ``wrapper/model/inner`` for one inside of a TimeDistributed model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from keras2torch_birnn.spec import Call, Graph, LayerSpec, TensorRef, leaves, tensors


def call_path(layer: str, index: int) -> str:
    """Return the path of a call in its graph: ``name``, or ``name#1`` of the second call."""
    return f"{layer}#{index}" if index else layer


def path_of(one: Call | TensorRef) -> str:
    """Return the path of a call, or of the call that returns a tensor, in its graph."""
    return call_path(one.layer, one.index if isinstance(one, Call) else one.call)


def place_of(path: str) -> str:
    """Return the place of the layer that a call reaches: its path without numbers of calls."""
    return "/".join(part.partition("#")[0] for part in path.split("/"))


def direct_sources(graph: Graph, start: str, outer: Sequence[str] = ()) -> dict[str, Sequence[str]]:
    """Return the calls whose outputs each call takes, the last one first.

    A model takes the outputs of the calls in it; those that take its inputs take ``outer``.
    """
    found: dict[str, Sequence[str]] = {}
    inputs = {(ref.layer, ref.call) for ref in leaves(graph.inputs)}
    for call in graph.calls:
        before: list[str] = []
        refs = tensors((call.args, dict(call.kwargs)))
        for name, index in reversed(dict.fromkeys((ref.layer, ref.call) for ref in refs)):
            before += outer if (name, index) in inputs else [f"{start}{call_path(name, index)}"]
        path = f"{start}{path_of(call)}"
        inner, prefix = _inside(graph.layer(call.layer), path)
        if inner.graph is not None:
            found |= direct_sources(inner.graph, prefix, before)
            ends = [path_of(ref) for ref in leaves(inner.graph.outputs)]
            before = [*(f"{prefix}{end}" for end in ends), *before]
        found[path] = before
    return found


def _inside(layer: LayerSpec, path: str) -> tuple[LayerSpec, str]:
    """Return the layer inside of TimeDistributed, and how the paths of the calls in it begin."""
    prefix = f"{path}/"
    while layer.class_name == "TimeDistributed":
        layer = layer.parts["layer"]
        prefix += f"{layer.name}/"
    return layer, prefix


def later_calls(sources: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Return the calls that are computed from the output of each call, however many calls later."""
    later: dict[str, set[str]] = {path: set() for path in sources}
    for path in sources:
        before = [path]
        for one in before:  # grows meanwhile
            before += [other for other in sources.get(one, ()) if other not in before]
        for other in before[1:]:
            later.setdefault(other, set()).add(path)
    return later
