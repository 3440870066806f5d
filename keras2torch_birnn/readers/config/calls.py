"""Masks of the calls in a graph: which are passed on and which are dropped, by generation.

Sources: ``Layer.__call__`` of Keras 3.0 to 3.15; ``MultiHeadAttention.call`` since 3.8, which takes
the masks off the very tensors it is given; ``RNN._process_inputs`` of tf.keras.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.schema import CLASSES, RECURRENT
from keras2torch_birnn.schema.dtype_flow import Node
from keras2torch_birnn.spec import Call, Graph, LayerSpec, TensorRef, map_structure, tensors

# Layers that return the same tensor at inference.
_SAME_TENSOR = frozenset(CLASSES["dropout"])
# Layers of one tensor whose ``call`` has a mask; a plugin's layer may have one.
_TAKES_MASK = frozenset(
    {
        *RECURRENT,
        *("Bidirectional", "TimeDistributed", "BatchNormalization", "GlobalAveragePooling1D"),
        *("Softmax", "Sequential", "Functional"),
    }
)


def resolve_masks(graph: Graph, parsing: Parsing) -> Graph:
    """Write into all calls, also of inner graphs, what this Keras does with their masks.

    A call gets ``keep_mask`` if later layers see its input's mask and not the passed one;
    references to tensors whose mask was dropped get ``masked=False``.
    """
    generation = parsing.generation
    calls = tuple(
        _resolve_passed_mask(graph.layer(call.layer), call, parsing) for call in graph.calls
    )
    graph = replace(graph, calls=calls)
    for call in calls:
        layer = graph.layer(call.layer)
        half = layer.parts.get("forward_layer", layer)
        stateful = bool(half.config.get("stateful")) and "initial_state" in call.kwargs
        if stateful and generation.carried_state_wins:
            parsing.refuse(
                "initial_state on a stateful layer: this Keras uses it only while all that "
                "the layer carries is zero",
                "make the layer stateful=False, or leave initial_state out, and save again",
                layer.place,
            )
    if not generation.attention_takes_masks:
        return graph
    inside = (part for layer in graph.layers for part in layer.walk())
    if not any(part.class_name == "MultiHeadAttention" for part in inside):
        return graph
    graph, _ = _drop_lost_masks(graph)
    if any(not ref.masked for call in graph.calls for ref in tensors((call.args, call.kwargs))):
        parsing.notes.append(
            "MultiHeadAttention of this Keras takes the masks off its inputs: layers that read "
            "them later see no mask, as in Keras"
        )
    return graph


def _resolve_passed_mask(layer: LayerSpec, call: Call, parsing: Parsing) -> Call:
    if "mask" not in call.kwargs or layer.graph is not None:
        return call
    kwargs, generation = dict(call.kwargs), parsing.generation
    if len(call.args) > 1:  # passed as query_mask, value_mask, key_mask
        if layer.class_name == "MultiHeadAttention" and generation.attention_takes_masks:
            kwargs["mask"] = (None, *kwargs["mask"][1:])  # it looks at the query itself
    elif generation.passed_mask_goes_on:
        return call
    return replace(call, kwargs={**kwargs, "keep_mask": True})


# ---- masks taken away ---------------------------------------------------------------------------


def _drop_lost_masks(graph: Graph) -> tuple[Graph, frozenset[int]]:
    """Mark tensors whose mask is dropped; return also the indices of such inputs of the graph."""
    inputs = tuple(tensors(graph.inputs))
    origin: dict[TensorRef, TensorRef] = {}
    lost: set[TensorRef] = set()
    inner: dict[str, tuple[Graph, frozenset[int]]] = {}
    done: dict[Node, Call] = {}

    def first(ref: TensorRef) -> TensorRef:
        return origin.get(ref, ref)

    def mark(leaf: object) -> object:
        if isinstance(leaf, TensorRef) and first(leaf) in lost:
            return replace(leaf, masked=False)
        return leaf

    by_node = {(call.layer, call.index): call for call in graph.calls}
    for node in _sort_as_keras3(graph, by_node):
        call, layer = by_node[node], graph.layer(node[0])
        args = tuple(map_structure(mark, arg) for arg in call.args)
        done[node] = replace(call, args=args)
        given = [first(ref) for ref in tensors(call.args)]
        if layer.class_name in _SAME_TENSOR and given:
            origin[TensorRef(*node)] = given[0]
        elif layer.class_name == "MultiHeadAttention":
            lost.update(first(ref) for ref in tensors(call.args[:3]))
        elif layer.graph is not None:
            if call.kwargs.get("mask") is not None:  # it is put on the input
                lost.difference_update(given)
            if layer.name not in inner:
                inner[layer.name] = _drop_lost_masks(layer.graph)
            lost.update(ref for i, ref in enumerate(given) if i in inner[layer.name][1])
    layers = tuple(
        replace(layer, graph=inner[layer.name][0]) if layer.name in inner else layer
        for layer in graph.layers
    )
    calls = tuple(done.get((call.layer, call.index), call) for call in graph.calls)
    outputs = map_structure(mark, graph.outputs)
    taken = frozenset(i for i, ref in enumerate(inputs) if first(ref) in lost)
    return replace(graph, layers=layers, calls=calls, outputs=outputs), taken


def _sort_as_keras3(graph: Graph, by_node: Mapping[Node, Call]) -> list[Node]:
    """Sort calls in the order in which Keras 3 runs them (``ops/function.py`` ``map_graph``).

    By depth, the longest path to an output; calls of a layer that is used several times may be
    deeper. Calls of one depth stay in the order in which their depths were computed.
    """
    parents = {
        node: [(ref.layer, ref.call) for ref in tensors((call.args, call.kwargs))]
        for node, call in by_node.items()
    }
    finished = _outputs_last(graph, parents)
    depths: dict[Node, int] = {}
    of_layer: dict[str, int] = {}
    for node in reversed(finished):
        depth = max(depths.setdefault(node, 0), of_layer.get(node[0], 0))
        of_layer[node[0]] = depths[node] = depth
        for parent in parents[node]:
            depths[parent] = max(depth + 1, depths.get(parent, 0))
    return sorted(depths, key=lambda node: -depths[node])


def _outputs_last(graph: Graph, parents: Mapping[Node, list[Node]]) -> list[Node]:
    """Sort depth first from the outputs, every call after those it needs, without recursion."""
    finished: dict[Node, None] = {}
    for end in tensors(graph.outputs):
        stack: list[tuple[Node, bool]] = [((end.layer, end.call), False)]
        while stack:
            node, needs_met = stack.pop()
            if needs_met:
                finished.setdefault(node)
            elif node not in finished:
                stack.append((node, True))
                stack += [(parent, False) for parent in reversed(parents[node])]
    return list(finished)
