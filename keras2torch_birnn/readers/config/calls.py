"""The chain of a Sequential; masks of the calls in a graph, by generation.

Sources: ``Layer.__call__`` of Keras 3.0 to 3.15; ``MultiHeadAttention.call`` since 3.8, which takes
the masks off the very tensors it is given; ``RNN._process_inputs`` of tf.keras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from keras2torch_birnn.errors import invalid, printable
from keras2torch_birnn.readers.config.generations import has_mask, parse_shape, rule_of
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.schema import DROPOUT
from keras2torch_birnn.schema.dtype_flow import Node
from keras2torch_birnn.spec import (
    Call,
    Graph,
    LayerPath,
    LayerSpec,
    Structure,
    TensorRef,
    leaves,
    map_structure,
    tensors,
)

# Layers that return the same tensor at inference.
_SAME_TENSOR = frozenset(DROPOUT)


def resolve_masks(graph: Graph, parsing: Parsing) -> Graph:
    """Write into the calls what this Keras does with the masks that they are given.

    A call gets ``keep_mask`` if later layers see its input's mask and not the passed one.
    """
    for call in graph.calls:
        layer = graph.layer(call.layer)
        half = layer.parts.get("forward_layer", layer)
        stateful = bool(half.config.get("stateful")) and "initial_state" in call.kwargs
        if stateful and rule_of("carried_state_wins", parsing.generation):
            parsing.refuse(
                "initial_state on a stateful layer: this Keras uses it only while all that "
                "the layer carries is zero",
                "make the layer stateful=False, or leave initial_state out, and save again",
                layer.place,
            )
    calls = tuple(
        _resolve_passed_mask(graph.layer(call.layer), call, parsing) for call in graph.calls
    )
    return replace(graph, calls=calls)


def _resolve_passed_mask(layer: LayerSpec, call: Call, parsing: Parsing) -> Call:
    if "mask" not in call.kwargs or layer.graph is not None:
        return call
    kwargs, generation = dict(call.kwargs), parsing.generation
    if len(call.args) > 1:  # passed as query_mask, value_mask, key_mask
        taken = rule_of("attention_takes_masks", generation)
        if taken and layer.class_name == "MultiHeadAttention":
            kwargs["mask"] = (None, *kwargs["mask"][1:])  # it looks at the query itself
    elif rule_of("passed_mask_goes_on", generation):
        return call
    return replace(call, kwargs={**kwargs, "keep_mask": True})


def drop_taken_masks(root: LayerSpec, parsing: Parsing) -> LayerSpec:
    """Mark with ``masked=False`` what is read after a MultiHeadAttention took its mask.

    A tensor is refused that others read who need not run later: which of them still sees the mask
    depends on the order in which Keras runs them.
    """
    if not root.graph or not rule_of("attention_takes_masks", parsing.generation):
        return root
    if not has_mask(root):
        return root
    root = _drop_in(root, parsing, set())
    graphs = [layer.graph for layer in root.walk() if layer.graph]
    if any(
        not ref.masked for graph in graphs for call in graph.calls for ref in tensors(call.args)
    ):
        parsing.note(
            "MultiHeadAttention of this Keras takes the masks off its inputs: layers that read "
            "them later see no mask, as in Keras"
        )
    return root


def _drop_in(model: LayerSpec, parsing: Parsing, taking: set[str]) -> LayerSpec:
    """Do it in a model; its place is added to ``taking`` if it takes a mask off an input."""
    model = model.map_inner(lambda _, layer: _drop_in(layer, parsing, taking))
    graph = model.graph
    if graph is None:
        return model
    origin: dict[TensorRef, TensorRef] = {}
    readers: dict[TensorRef, list[Node]] = {}
    takers: dict[TensorRef, Node] = {}  # the first one

    def first(ref: TensorRef) -> TensorRef:
        return origin.get(ref, ref)

    for call in graph.calls:
        layer, node = graph.layer(call.layer), (call.layer, call.index)
        given = [first(ref) for ref in tensors(call.args)]
        if layer.class_name in _SAME_TENSOR and given:
            origin[TensorRef(*node)] = given[0]
            continue
        for ref in {*given, *(first(ref) for ref in tensors(call.kwargs))}:
            readers.setdefault(ref, []).append(node)
        heads = layer.class_name == "MultiHeadAttention"
        for ref in given[:3] if heads else given if layer.place in taking else ():
            takers.setdefault(ref, node)
    if any(first(ref) in takers for ref in tensors(graph.inputs)):
        taking.add(model.place)
    for ref in _read_at_any_time(graph, readers, takers):
        layer = graph.layer(takers[ref][0])
        parsing.refuse(
            f"the mask of {printable(ref.layer)}: MultiHeadAttention of this Keras takes it off "
            "its input, which other layers read as well, before or after it",
            "give the attention a tensor of its own (layers.Rescaling(1.0)), so that the others "
            "see the mask, check in Keras that it still predicts as it should, and save it again",
            layer.place,
        )

    def mark(value: Structure, node: Node | None = None) -> Structure:
        def leaf(ref: object) -> object:
            if isinstance(ref, TensorRef) and takers.get(first(ref), node) != node:
                return replace(ref, masked=False)
            return ref

        return map_structure(leaf, value)

    calls = tuple(
        call
        if TensorRef(call.layer, call.index) in origin
        else replace(call, args=mark(call.args, (call.layer, call.index)))
        for call in graph.calls
    )
    return replace(model, graph=replace(graph, calls=calls, outputs=mark(graph.outputs)))


def _read_at_any_time(
    graph: Graph, readers: Mapping[TensorRef, list[Node]], takers: Mapping[TensorRef, Node]
) -> list[TensorRef]:
    """List the tensors with a reader that does not depend on who takes the mask."""
    takers = {ref: node for ref, node in takers.items() if len(readers[ref]) > 1}
    bits = {node: 1 << number for number, node in enumerate(dict.fromkeys(takers.values()))}
    behind: dict[Node, int] = {}
    for call in graph.calls:
        node = (call.layer, call.index)
        behind[node] = bits.get(node, 0)
        for ref in tensors((call.args, call.kwargs)):
            behind[node] |= behind[ref.layer, ref.call]
    return [
        ref for ref, node in takers.items() if any(not behind[r] & bits[node] for r in readers[ref])
    ]


# ---- a chain of layers ---------------------------------------------------------------------------


def build_sequential(
    layers: Sequence[LayerSpec],
    entries: Sequence[Any],
    declared: Mapping[str, Any],
    path: LayerPath,
) -> Graph:
    """Connect layers in a chain; without an InputLayer one is made from the first layer's config.

    ``path``: that of the model.

    Only the first layer's ``batch_input_shape`` is used: later ones are stale (TF 1.14 writes the
    model's own there; Keras 1 writes one for every Embedding).
    """
    if layers[0].class_name != "InputLayer":
        taken = {layer.name for layer in layers}
        name = f"{layers[0].name}_input"
        while name in taken:
            name += "_"
        config = {
            "trainable": True,
            "shape": _find_input_shape(layers[0], entries[0], declared),
            "dtype": "float32",
        }
        layers = (LayerSpec("InputLayer", name, config, path=(*path, name)), *layers)
    if any(layer.class_name == "InputLayer" for layer in layers[1:]):
        raise invalid("an InputLayer between other layers", "/".join(path))
    refs = [TensorRef(layer.name) for layer in layers]
    calls = [Call(layers[0].name, 0, ())]
    calls += [Call(layer.name, 0, (ref,)) for layer, ref in zip(layers[1:], refs, strict=False)]
    return Graph(tuple(layers), tuple(calls), (refs[0],), refs[-1])


def _find_input_shape(first: LayerSpec, entry: Any, declared: Mapping[str, Any]) -> Any:
    if first.graph is not None:
        return stated_input_shape(first.graph)
    config = entry["config"]
    for source, key in (
        (config, "batch_input_shape"),
        (config, "batch_shape"),
        (declared, "build_input_shape"),
    ):
        if isinstance(source, Mapping) and source.get(key) is not None:
            return parse_shape(source[key], first.place)
    return None


def stated_input_shape(graph: Graph) -> Any:
    """Return the shape of a graph's first input; None if it states none, or its class is refused.

    A user's class can have the name InputLayer.
    """
    ref = next(leaves(graph.inputs))
    return graph.layer(ref.layer).config.get("shape")
