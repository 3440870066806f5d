"""Graphs of Functional models: nodes of any generation become calls, in the order of their need."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from keras2torch_birnn.errors import UnsupportedOptionError, invalid, printable
from keras2torch_birnn.readers.config.calls import resolve_masks
from keras2torch_birnn.readers.config.checks import (
    CARRY_STATES,
    IGNORE_MASK,
    OWN_WORDS,
    check_graph,
    list_words,
)
from keras2torch_birnn.readers.config.classes import TRANSLATED
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.readers.operations.values import (
    CONSTANT_CLASSES,
    infer_dtypes,
    is_reference,
    read_constant,
)
from keras2torch_birnn.schema import AUGMENTATION, OPS, SCHEMA, BadOptionError
from keras2torch_birnn.spec import (
    Call,
    Graph,
    LayerSpec,
    Structure,
    TensorRef,
    leaves,
    map_structure,
    tensors,
)

# Arguments and keywords of one call; the calls of a model by layer and index.
NodeCall: TypeAlias = tuple[tuple[Structure, ...], dict[str, Structure]]
Nodes: TypeAlias = dict[tuple[str, int], NodeCall]


def renumber_nested_calls(
    nodes: Mapping[tuple[str, int], NodeCall],
    outputs: Structure,
    by_name: Mapping[str, LayerSpec],
    *,
    dict_nodes: bool,
) -> tuple[Nodes, Structure]:
    """Renumber the calls of nested models from 0, like those of all other layers.

    Call 0 of a nested model is the one on its own input, which files do not list. Files with
    lists of nodes then count from 1: the highest index in use equals the number of calls. Keras 3
    does so in ``output_layers`` only, and for Functional models only.
    """
    nested = {n for n, layer in by_name.items() if layer.graph is not None}
    if not nested:
        return dict(nodes), outputs
    if dict_nodes:
        functional = {n for n in nested if by_name[n].class_name == "Functional"}
        return dict(nodes), _renumber(outputs, lambda ref: ref.call - (ref.layer in functional))
    calls = Counter(name for name, _ in nodes)
    highest: dict[str, int] = {}
    for ref in tensors((tuple(nodes.values()), outputs)):
        highest[ref.layer] = max(ref.call, highest.get(ref.layer, 0))
    from_one = {n for n in nested if highest.get(n) == calls[n]}

    def from_zero(ref: TensorRef) -> int:
        return ref.call - (ref.layer in from_one)

    return _renumber_nodes(nodes, from_zero), _renumber(outputs, from_zero)


def check_outside_calls(nodes: Nodes, outputs: Structure, place: str) -> None:
    """Refuse calls of layers that were also called outside of this model.

    Keras 3.0 and 3.1 list the calls that belong to the model, and count every call ever made
    between layers (``serialize_node``). Every call of a model is used, and others are not listed.

    Raises:
        UnsupportedOptionError: the calls that are used are not those that are listed.
    """
    calls = Counter(name for name, _ in nodes)
    used: dict[str, set[int]] = {name: set() for name in calls}
    for ref in tensors((tuple(nodes.values()), outputs)):
        used.setdefault(ref.layer, set()).add(ref.call)
    for name, found in used.items():
        if found and found != set(range(calls[name])):
            raise UnsupportedOptionError(
                f"layer {printable(name)} was also called outside of this model, and Keras before "
                "3.2 counts those calls, too",
                "save the model from a program that calls its layers in it alone",
                place=place,
            )


def _renumber(structure: Structure, number: Callable[[TensorRef], int]) -> Any:
    return map_structure(
        lambda leaf: replace(leaf, call=number(leaf)) if isinstance(leaf, TensorRef) else leaf,
        structure,
    )


def _renumber_nodes(
    nodes: Mapping[tuple[str, int], NodeCall], number: Callable[[TensorRef], int]
) -> Nodes:
    return {
        key: (_renumber(args, number), _renumber(kwargs, number))
        for key, (args, kwargs) in nodes.items()
    }


# ---- graphs --------------------------------------------------------------------------------------


# Graphs of layers: ``inbound_nodes`` of every dialect -> calls in executable order.
#
# Nothing here recurses over the chain of layers and nothing is quadratic: a file may hold
# thousands.


# ``training=True`` is their default in Keras 3, which files hold; predict() overrules it.
TRAIN_BY_DEFAULT = frozenset({*AUGMENTATION, "Resizing"})


def build_functional(
    layers: Sequence[LayerSpec],
    entries: Sequence[Any],
    config: Mapping[str, Any],
    place: str,
    parsing: Parsing,
) -> Graph:
    """Connect layers by their ``inbound_nodes``, in any dialect."""
    by_name = {layer.name: layer for layer in layers}
    nodes: Nodes = {}
    for layer, entry in zip(layers, entries, strict=True):
        found = entry.get("inbound_nodes") or []
        if not found and layer.class_name == "InputLayer":
            nodes[layer.name, 0] = ((), {})
        for index, node in enumerate(found):
            nodes[layer.name, index] = _parse_node(node, by_name, layer.place)
    inputs = _parse_ends(config, "input_layers", by_name, place)
    outputs = _parse_ends(config, "output_layers", by_name, place)
    dict_nodes = any(
        _is_keras3_node(node)
        for entry in entries
        if entry.get("module") != TRANSLATED
        for node in entry.get("inbound_nodes") or ()
    )
    nodes, outputs = renumber_nested_calls(nodes, outputs, by_name, dict_nodes=dict_nodes)
    # "3.0" is also what a text of Keras 3 counts as that names no version.
    if parsing.generation.numbers[:2] in ((3, 0), (3, 1)):
        check_outside_calls(nodes, outputs, place)
    calls = [
        _normalize_call(by_name[name], index, args, kwargs, dict_nodes, parsing)
        for (name, index), (args, kwargs) in nodes.items()
    ]
    ordered = _sort_calls(calls, outputs, place)
    return check_graph(Graph(tuple(layers), ordered, inputs, outputs), place)


def _is_keras3_node(node: Any) -> bool:
    """Tell whether a node has the form of Keras 3: {"args": [...], "kwargs": {...}}."""
    return isinstance(node, Mapping) and isinstance(node.get("kwargs"), Mapping)


def _parse_node(node: Any, by_name: Mapping[str, LayerSpec], place: str) -> NodeCall:
    """Parse a call of a layer: of Keras 3, of tensors by their names, or as a list of tensors."""
    if _is_keras3_node(node):
        args, kwargs = node.get("args", []), node["kwargs"]
        return (
            tuple(_tensors(a, by_name, place) for a in args),
            {str(k): _tensors(v, by_name, place) for k, v in kwargs.items()},
        )
    if isinstance(node, Mapping) and node:  # tf.keras: a model called with a dict of tensors
        items = sorted(node.items())
        listed = [value if isinstance(value, list) else [value] for _, value in items]
        refs, kwargs = _parse_node(listed, by_name, place)
        if len(refs) != len(items):
            raise invalid(f"{len(refs)} tensors by {len(items)} names", place)
        return ({str(name): ref for (name, _), ref in zip(items, refs, strict=True)},), kwargs
    if not isinstance(node, list) or not node:
        raise invalid("a call of unknown form", place)
    if isinstance(node[0], str):  # one tensor, not in a list of tensors
        node = [node]
    found: list[TensorRef] = []
    for tensor in (one for entry in node for one in _split_nested(entry)):
        if not is_reference(tensor, by_name):
            raise invalid(
                f"an input from {printable(tensor)}, which is no layer of the model", place
            )
        found.append(TensorRef(tensor[0], tensor[1], tensor[2]))
    # The same kwargs are repeated on every tensor.
    kwargs = node[0][3] if len(node[0]) > 3 and isinstance(node[0][3], Mapping) else {}
    return tuple(found), {str(k): _tensors(v, by_name, place) for k, v in kwargs.items()}


def _split_nested(entry: Any) -> list[Any]:
    """List one tensor, or those of a list: tf.keras nests the states of a stack of cells."""
    nested = isinstance(entry, list) and entry and all(isinstance(one, list) for one in entry)
    return entry if nested else [entry]


def _tensors(value: Any, by_name: Mapping[str, LayerSpec], place: str) -> Structure:
    """Turn every reference inside a structure into a TensorRef."""
    if isinstance(value, Mapping):
        if value.get("class_name") == "__keras_tensor__":
            config = value.get("config")
            history = config.get("keras_history") if isinstance(config, Mapping) else None
            if not is_reference(history, by_name):
                raise invalid(
                    f"an input from {printable(history)}, which is no layer of the model", place
                )
            return TensorRef(*history[:3])
        if value.get("class_name") in CONSTANT_CLASSES:
            return read_constant(value, place)
        # Keras takes the entries of a dict in the order of their keys.
        items = sorted((str(k), v) for k, v in value.items())
        return {k: _tensors(v, by_name, place) for k, v in items}
    if is_reference(value, by_name) and len(value) == 3:
        return TensorRef(*value)
    if isinstance(value, list):
        return tuple(_tensors(v, by_name, place) for v in value)
    return value


def _parse_ends(
    config: Mapping[str, Any], key: str, by_name: Mapping[str, LayerSpec], place: str
) -> Structure:
    """Parse ``input_layers`` or ``output_layers``: a triple, or lists and dicts of triples."""
    ends = _tensors(config.get(key), by_name, place)
    if isinstance(ends, TensorRef):
        ends = (ends,) if key == "input_layers" else ends
    found = list(leaves(ends))
    if not found or not all(isinstance(end, TensorRef) for end in found):
        raise invalid(f"{key} names no layer of the model", place)
    # A list of one output is one tensor, as in Keras' ``predict``.
    return (
        ends[0] if key == "output_layers" and isinstance(ends, tuple) and len(ends) == 1 else ends
    )


def _normalize_call(
    layer: LayerSpec,
    index: int,
    args: tuple[Structure, ...],
    kwargs: Mapping[str, Structure],
    dict_nodes: bool,
    parsing: Parsing,
) -> Call:
    """Normalize a call: tensors in ``args``, in ``kwargs`` only what has an effect."""
    if layer.class_name in OPS:  # normalized by ``operations``
        return Call(layer.name, index, args, {})
    kept = {k: v for k, v in kwargs.items() if v is not None and k != "training"}
    overruled = dict_nodes and layer.class_name in TRAIN_BY_DEFAULT
    if kwargs.get("training") not in (None, False, 0) and not overruled:
        parsing.refuse(
            "a layer called with training=True",
            "call it without, save again, and call .train() on this layer's torch module",
            layer.place,
        )
    for key in [key for key in kept if key in OWN_WORDS]:
        _refuse_word(layer, key, kept.pop(key), "a word of k2t's own", parsing)
    if layer.class_name in CARRY_STATES:
        args = _recurrent_call(args, kept, dict_nodes)
    elif layer.class_name in SCHEMA:
        schema = SCHEMA[layer.class_name]
        if not dict_nodes and (len(args) > 1 or schema.listed):
            args = (args,)  # one argument, a list of tensors
        args += tuple(kept.pop(name, None) for name in schema.arguments[len(args) :])
        while args and args[-1] is None:
            args = args[:-1]
        if len(args) > 1 and len(schema.arguments) > 1:  # query_mask, value_mask, ...
            passed = tuple(kept.pop(f"{name}_mask", None) for name in schema.arguments[: len(args)])
            if any(mask is not None for mask in passed):
                kept["mask"] = passed
    elif not dict_nodes and len(args) > 1:  # a plugin's layer: one argument, a list of tensors
        args = (args,)
    _check_call(layer, kept, parsing)
    return Call(layer.name, index, args, kept)


def _recurrent_call(
    args: tuple[Structure, ...], kept: dict[str, Structure], dict_nodes: bool
) -> tuple[Structure, ...]:
    """Move tensors after the sequence to ``initial_state``, however the dialect passes them."""
    if len(args) > 1:
        kept.setdefault("initial_state", args[1] if dict_nodes else args[1:])
    if "initial_state" in kept:  # a tensor, a list, or for a stack of cells a list of lists
        kept["initial_state"] = tuple(leaves(kept["initial_state"]))
    if dict_nodes and "initial_state" in kept and "mask" not in kept:
        # Keras 3 fills in masks for layers with one tensor argument only, so the recurrence
        # runs unmasked; the output carries the mask on (Keras 3.15 ``layers/layer.py``).
        kept[IGNORE_MASK] = True
    return args[:1]


def _check_call(layer: LayerSpec, kept: dict[str, Structure], parsing: Parsing) -> None:
    """Parse the options of a call; unknown ones are problems, and dropped."""
    if layer.class_name not in SCHEMA:
        return
    options, known = SCHEMA[layer.class_name].call_options, (*list_words(layer), *OWN_WORDS)
    for key in [key for key in kept if key not in known]:
        value = kept.pop(key)
        try:
            if key not in options:
                raise BadOptionError("unknown")
            kept[key] = options[key].parse(value)
        except BadOptionError as error:
            _refuse_word(layer, key, value, error, parsing)


def _refuse_word(
    layer: LayerSpec, key: str, value: Structure, reason: object, parsing: Parsing
) -> None:
    shown = "a tensor" if any(True for _ in tensors(value)) else printable(repr(value))
    parsing.refuse(
        f"{printable(layer.class_name)} called with {printable(key)}={shown}: {reason}",
        "call it without, or supply a layer of your own that does the same, with --plugin",
        layer.place,
    )


def _sort_calls(calls: Sequence[Call], outputs: Structure, place: str) -> tuple[Call, ...]:
    """Sort so that every call comes after those it needs, else in the file's order."""
    by_key = {(call.layer, call.index): call for call in calls}
    waiting: dict[tuple[str, int], int] = {}
    users: dict[tuple[str, int], list[tuple[str, int]]] = {key: [] for key in by_key}
    for key, call in by_key.items():
        needs = _check_refs((call.args, call.kwargs), by_key, place)
        waiting[key] = len(needs)
        for need in needs:
            users[need].append(key)
    _check_refs(outputs, by_key, place)
    ready = deque(key for key, count in waiting.items() if count == 0)
    ordered: list[Call] = []
    while ready:
        key = ready.popleft()
        ordered.append(by_key[key])
        for user in users[key]:
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    if len(ordered) < len(calls):
        stuck = sorted({name for (name, _), count in waiting.items() if count})
        raise invalid(
            f"layers {', '.join(printable(name) for name in stuck[:5])} form a cycle", place
        )
    return tuple(ordered)


def _check_refs(
    structure: Structure, by_key: Mapping[tuple[str, int], Call], place: str
) -> set[tuple[str, int]]:
    """Return the calls whose outputs are used; refuse one, or an output, that is not there.

    The upper bound of outputs is known with the shapes.
    """
    refs = list(tensors(structure))
    for ref in refs:
        what = f"output {ref.output}" if ref.output < 0 else f"call {ref.call}"
        if ref.output < 0 or (ref.layer, ref.call) not in by_key:
            raise invalid(f"{what} of layer {printable(ref.layer)} is used but not there", place)
    return {(ref.layer, ref.call) for ref in refs}


# ---- calls, masks and dtypes ---------------------------------------------------------------------


# Connect the layers of a Functional model: calls, masks, and the dtypes of its operations.


def connect(
    layers: Sequence[LayerSpec],
    entries: Sequence[Any],
    config: Mapping[str, Any],
    place: str,
    parsing: Parsing,
) -> Graph:
    """Connect the layers by the calls that their entries hold."""
    graph = build_functional(layers, entries, config, place, parsing)
    return infer_dtypes(resolve_masks(graph, parsing), parsing)
