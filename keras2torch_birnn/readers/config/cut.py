"""Cut a model at layers of its top level."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.readers.config.calls import stated_input_shape
from keras2torch_birnn.readers.config.parsing import BARE, Parsing, Whole, is_text_layer
from keras2torch_birnn.readers.operations.values import infer_dtypes
from keras2torch_birnn.schema import CONV_LSTMS, DROPOUT, OPS, PAGES, RECURRENT, SCHEMA
from keras2torch_birnn.schema.custom_layers import custom_layer_of, output_count
from keras2torch_birnn.schema.dtype_flow import Node, dtype_of, known_dtypes
from keras2torch_birnn.schema.shape_inference import infer_model, shape_leaves
from keras2torch_birnn.spec import (
    Call,
    Cut,
    Graph,
    LayerSpec,
    Shape,
    Structure,
    TensorRef,
    format_shape,
    leaves,
    map_structure,
    tensors,
)
from keras2torch_birnn.suggestions import did_you_mean

# Layers after which no tensor has a mask, and which do not look at one.
STOPS = frozenset(
    name
    for name, page in PAGES.items()
    if page in ("convolution", "reshaping", "preprocessing") and name not in CONV_LSTMS
) - {"GlobalAveragePooling1D", "Normalization", "Rescaling"} | {
    *("Dot", "EinsumDense", "Merge", "RMSNormalization")
}
# Layers that hand a mask on and compute the same with and without one.
PASSES = frozenset(DROPOUT) | frozenset(
    "Activation Add Average Concatenate Dense ELU GroupNormalization InputLayer "
    "LayerNormalization LeakyReLU Normalization PReLU ReLU Rescaling "
    "Subtract ThresholdedReLU UnitNormalization".split()
)
_MAKE = ("Embedding", "Masking")


def find_masks(graph: Graph) -> dict[Node, str]:
    """Return the calls whose outputs may have a mask -> the layer that made it, of this graph.

    Whether a layer of an unknown class makes a mask, or hands one on, is in its code: it counts as
    one that does.
    """
    found: dict[Node, str] = {}
    for call in graph.calls:
        layer, source = graph.layer(call.layer), _handed_on(call, found)
        passed = call.kwargs.get("mask") is not None
        if _makes_mask(layer) or not is_ours(layer) or (passed and source is None):
            source = layer.name
        if source is not None and not _ends_mask(layer):
            found[call.layer, call.index] = source
    return found


def carry_masks(graph: Graph, given: Mapping[str, str]) -> dict[Node, str]:
    """Return the calls whose outputs may have one of the given masks, which inputs have by name."""
    found: dict[Node, str] = {}
    for call in graph.calls:
        layer = graph.layer(call.layer)
        source = given.get(layer.name, _handed_on(call, found))
        if source is not None and layer.class_name not in _MAKE and not _ends_mask(layer):
            found[call.layer, call.index] = source
    return found


def _handed_on(call: Call, found: Mapping[Node, str]) -> str | None:
    read = tensors((call.args, call.kwargs.get("mask")))
    return next(
        (found[ref.layer, ref.call] for ref in read if (ref.layer, ref.call) in found), None
    )


def is_ours(layer: LayerSpec) -> bool:
    """Tell whether a layer is one of Keras' whose treatment of masks is known."""
    return layer.class_name in SCHEMA or layer.class_name in OPS or is_text_layer(layer)


def _makes_mask(layer: LayerSpec) -> bool:
    return any(
        one.class_name == "Masking"
        or (one.class_name == "Embedding" and bool(one.config.get("mask_zero")))
        for one in layer.walk()
    )


def may_use(layer: LayerSpec) -> bool:
    """Tell whether the outputs of a layer, or of one in it, may depend on a mask."""
    if layer.graph is not None:
        return any(map(may_use, layer.graph.layers))
    return layer.class_name not in STOPS | PASSES | OPS.keys() and layer.class_name not in _MAKE


def _ends_mask(layer: LayerSpec) -> bool:
    """Tell whether no output of a layer has a mask."""
    config: Mapping[str, object] = layer.parts.get("forward_layer", layer).config
    last = layer.class_name in (*RECURRENT, "Bidirectional") and not config.get("return_sequences")
    return last or is_text_layer(layer) or layer.class_name in STOPS


# ---- cuts ----------------------------------------------------------------------------------------


# Cut a parsed model: it starts at the inputs of some layers and ends at the outputs of others.
#
# Only layers of the model itself can be named, none inside of another. The tensors that enter the
# first layers become inputs; what the outputs need besides (other inputs, other branches) stays.
# Problems of layers outside of the part are dropped.


_SHOWN = 8  # names in an error


def take_part(root: LayerSpec, parsing: Parsing, cut: Cut) -> tuple[LayerSpec, Parsing, Whole]:
    """Cut a model; return the part, its problems and notes, and the whole.

    Raises:
        UsageError: the names do not bound a part, or a mask would be lost.
    """
    graph = _graph(root)
    for option, names in (("--from", cut.first), ("--to", cut.last)):
        for number, name in enumerate(names):
            _check_name(option, name, graph, again=name in names[:number])
    bare = find_refused(root, parsing)
    known = infer_model(_strip(root, parsing, bare), [])  # its problems may be cut away
    part, entrances = _cut(graph, _graph(known), cut)
    model = replace(root, graph=part)
    inside = {layer.place for layer in model.walk()}
    places = {layer.place for layer in root.walk()}
    parsing = replace(
        parsing,
        problems=[one for one in parsing.problems if _owner(one.place, places) in ("", *inside)],
        notes=list(parsing.notes),
        penalties={place: kinds for place, kinds in parsing.penalties.items() if place in inside},
    )
    _check_masks(part, _graph(known), entrances, parsing)
    parsing.notes += _describe(part, entrances, parsing)
    model = replace(root, graph=infer_dtypes(part, parsing))
    parsing.problems[:] = {(one.place, one.message): one for one in parsing.problems}.values()
    left_out = frozenset(layer.path for layer in root.walk() if layer.place in bare - inside)
    texts = {place: text for place, text in parsing.texts.items() if place not in inside}
    whole = _strip(root, parsing, bare - inside)
    return model, parsing, Whole(whole, left_out, texts, cut)


def _graph(model: LayerSpec) -> Graph:
    if model.graph is None:
        raise TypeError("a layer without graph is no model")
    return model.graph


def _check_name(option: str, name: str, graph: Graph, *, again: bool) -> None:
    """Refuse a name that is none of a layer of the model itself, or that is given again."""
    shown = f"{option} {printable(name)}"
    found = {layer.name: layer for layer in graph.layers}
    if again:
        raise UsageError(f"{shown}: is named twice", "name each layer once")
    if name in found and found[name].class_name == "InputLayer":
        starts = "the model starts there without it" if option == "--from" else "nothing ends there"
        raise UsageError(f"{shown}: is an input, not a layer that computes", starts)
    if name in found:
        if all(call.layer != name for call in graph.calls):
            raise UsageError(f"{shown}: the model never calls this layer", "name another layer")
        return
    for layer in graph.layers:
        if any(name in (part.place, part.name) for part in layer.walk()):
            raise UsageError(
                f"{shown}: is inside the {printable(layer.class_name)} {printable(layer.name)}, "
                "which cannot be cut",
                f"name {printable(layer.name)} itself, or a layer beside it",
            )
    names = [layer.name for layer in graph.layers if layer.class_name != "InputLayer"]
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    listed = f"its layers are: {', '.join(map(printable, names[:_SHOWN]))}{more}"
    raise UsageError(
        f"{shown}: no layer of the model is called so", did_you_mean(name, names) or listed
    )


# ---- the graph ----------------------------------------------------------------------------------


def _cut(graph: Graph, known: Graph, cut: Cut) -> tuple[Graph, dict[str, TensorRef]]:
    """Return the graph of the part, and its new inputs by name with the tensors that they were.

    known: the graph with the shapes that could be inferred.
    """
    outputs = _outputs_of(graph, known, cut.last) if cut.last else graph.outputs
    layers = {layer.name: layer for layer in graph.layers}
    dtypes, entrances = known_dtypes(known), dict[str, TensorRef]()
    for name in cut.first:
        for ref in _entering(graph, name):
            is_input = layers[ref.layer].class_name == "InputLayer"
            if ref not in entrances.values() and not is_input:
                layer = _new_input(name, ref, known, dtype_of(ref, dtypes), layers.keys())
                layers[layer.name] = layer
                entrances[layer.name] = ref
    swaps = {ref: TensorRef(name) for name, ref in entrances.items()}

    def swap(structure: Structure) -> Structure:
        return map_structure(
            lambda leaf: swaps.get(leaf, leaf) if isinstance(leaf, TensorRef) else leaf, structure
        )

    for ref in tensors(outputs):
        if ref in swaps:
            raise UsageError(
                f"the output of {printable(ref.layer)} is before --from",
                "name the outputs of the part with --to",
            )
    calls = {(name, 0): Call(name, 0, ()) for name in entrances}
    for call in graph.calls:
        swapped = replace(call, args=swap(call.args), kwargs=swap(call.kwargs))
        calls[call.layer, call.index] = swapped
    needed = _needed(calls, outputs)
    for name in cut.first:
        if all(node[0] != name for node in needed):
            raise UsageError(
                f"--from {printable(name)}: nothing of it reaches the "
                + ("layer of --to" if cut.last else "model's output"),
                "name layers before and after each other",
            )
    kept = {node[0] for node in needed}
    names = (*entrances, *(layer.name for layer in graph.layers))
    part = Graph(
        tuple(layers[name] for name in names if name in kept),
        tuple(call for node, call in calls.items() if node in needed),
        tuple(map(TensorRef, _in_order(graph, entrances, kept))),
        outputs,
    )
    return part, {name: ref for name, ref in entrances.items() if name in kept}


def _outputs_of(graph: Graph, known: Graph, names: Sequence[str]) -> Structure:
    """Return the outputs of the named layers, one after the other."""
    found: list[TensorRef] = []
    read = [ref for call in graph.calls for ref in tensors((call.args, call.kwargs))]
    for name in names:
        calls, layer = [one for one in graph.calls if one.layer == name], known.layer(name)
        if len(calls) > 1:
            raise UsageError(
                f"--to {printable(name)}: is called {len(calls)} times",
                "name a layer that is called once",
            )
        if layer.output_shape is not None:
            count = len(list(shape_leaves(layer.output_shape)))
        else:
            every = (*read, *tensors(graph.outputs))
            used = [ref.output for ref in every if ref.layer == name]
            count = max(output_count(layer), 1 + max(used, default=0))
        found += [TensorRef(name, calls[0].index, number) for number in range(count)]
    return found[0] if len(found) == 1 else tuple(found)


def _entering(graph: Graph, name: str) -> list[TensorRef]:
    """Return the tensors that all calls of a layer read; none may read what another gave."""
    calls = [call for call in graph.calls if call.layer == name]
    behind: set[Node] = set()
    for call in graph.calls:
        before = {(ref.layer, ref.call) for ref in tensors((call.args, call.kwargs))}
        if any(node[0] == name or node in behind for node in before):
            behind.add((call.layer, call.index))
    if any((call.layer, call.index) in behind for call in calls):
        raise UsageError(
            f"{printable(name)} is called {len(calls)} times, also on what it gave itself",
            "name a layer that is called once",
        )
    return list(dict.fromkeys(ref for one in calls for ref in tensors((one.args, one.kwargs))))


def _new_input(
    name: str, ref: TensorRef, known: Graph, dtype: str, taken: Collection[str]
) -> LayerSpec:
    """Make the input of the part in the place of a tensor that enters the layer ``name``."""
    reader, giver = known.layer(name), known.layer(ref.layer)
    if dtype == "size":
        raise UsageError(
            f"--from {printable(name)}: reads the size of a tensor before it",
            "name a layer before or behind it",
        )
    if "gives" in giver.semantics:  # it turns text into numbers
        dtype = str(giver.semantics["gives"])
    elif dtype == "float" and reader.class_name == "Embedding":
        dtype = "int64"
    given: Structure = giver.output_shape
    shapes: list[Shape | None] = list(shape_leaves(given)) if given is not None else []
    shape = shapes[ref.output] if ref.output < len(shapes) else None
    if shape is None and reader.graph is not None:
        shape = stated_input_shape(reader.graph)
    label, count = f"{name}_input", 1
    while label in taken:
        count += 1
        label = f"{name}_input_{count}"
    known_dtype = dtype if dtype in ("int32", "int64", "bool") else "float32"
    config = {"trainable": True, "shape": shape, "dtype": known_dtype}
    return LayerSpec("InputLayer", label, config, path=(label,))


def _needed(calls: Mapping[Node, Call], outputs: Structure) -> frozenset[Node]:
    """Return the calls on which the outputs depend."""
    found: set[Node] = set()
    waiting = [(ref.layer, ref.call) for ref in tensors(outputs)]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            read = tensors((calls[node].args, calls[node].kwargs))
            waiting += [(ref.layer, ref.call) for ref in read]
    return frozenset(found)


def _in_order(graph: Graph, entrances: Mapping[str, TensorRef], kept: Collection[str]) -> list[str]:
    """Sort the part's inputs as the first of the model's inputs on which each depends."""
    numbers = {ref.layer: number for number, ref in enumerate(leaves(graph.inputs))}
    first: dict[Node, int] = {}
    for call in graph.calls:
        before = [first[ref.layer, ref.call] for ref in tensors((call.args, call.kwargs))]
        first[call.layer, call.index] = min([numbers.get(call.layer, len(numbers)), *before])
    order = {name: first[ref.layer, ref.call] for name, ref in entrances.items()}
    ranks = {**numbers, **order}
    return sorted((name for name in ranks if name in kept), key=lambda name: ranks[name])


# ---- layers that are not supported --------------------------------------------------------------


def find_refused(root: LayerSpec, parsing: Parsing) -> set[str]:
    """Return the places of the layers, no models, that are not supported as they are."""
    around = {prefix for problem in parsing.problems for prefix in _prefixes(problem.place)}
    return {
        layer.place
        for layer in root.walk()
        if layer.graph is None
        and (layer.place in around or not (layer.class_name in SCHEMA or custom_layer_of(layer)))
    }


def _strip(layer: LayerSpec, parsing: Parsing, places: Collection[str]) -> LayerSpec:
    """Strip the layers at these places of all but class and name."""
    if layer.place in places and layer.graph is None:
        text = parsing.texts.get(layer.place)
        gives = text is not None and custom_layer_of(layer) is None
        return LayerSpec(
            f"{BARE}{layer.class_name}",
            layer.name,
            {},
            path=layer.path,
            output_shape=text.output_shape if text else None,
            semantics={"gives": text.dtype} if text and gives else {},
        )
    return layer.map_inner(lambda _, one: _strip(one, parsing, places))


def _prefixes(place: str) -> Iterator[str]:
    """Yield a path and the paths of what is around it, innermost first."""
    yield place
    while "/" in place:
        place = place.rpartition("/")[0]
        yield place


def _owner(place: str, places: Collection[str]) -> str:
    """Return the place of the layer in which a problem is; empty if it is in none."""
    return next((one for one in _prefixes(place) if one in places), "")


# ---- what a user of the part should know --------------------------------------------------------


def _check_masks(
    part: Graph, known: Graph, entrances: Mapping[str, TensorRef], parsing: Parsing
) -> None:
    """Refuse a part in which a layer would use a mask that was made before the cut.

    known: the graph of the whole model.
    """
    masks = find_masks(known)
    given = {
        name: masks[ref.layer, ref.call]
        for name, ref in entrances.items()
        if (ref.layer, ref.call) in masks
    }
    lost = carry_masks(part, given)
    for call in part.calls:
        read = ((ref.layer, ref.call) for ref in tensors((call.args, call.kwargs)))
        sources = dict.fromkeys(lost[node] for node in read if node in lost)
        for source in sources if may_use(part.layer(call.layer)) else ():
            maker, user = printable(source), printable(call.layer)
            if is_ours(known.layer(source)):
                raise UsageError(
                    f"a mask of {maker} reaches {user}, and the part from there on has no input "
                    "for it",
                    f"let the part start with --from {maker}",
                )
            parsing.note(
                f"{maker} is of a class that k2t does not know: a mask that it makes or hands on "
                f"does not reach {user} here"
            )


def _describe(part: Graph, entrances: Mapping[str, TensorRef], parsing: Parsing) -> Iterator[str]:
    """Say for each new input what it is in the whole model."""
    for name, ref in entrances.items():
        source = printable(ref.layer)
        text = parsing.texts.get(ref.layer)
        if text is not None and text.config.get("ragged"):
            raise UsageError(
                f"{source} gives ragged ids, rows without padding",
                "make the layer anew with ragged=False, or read the model up to it in Keras",
            )
        config = part.layer(name).config
        shape = "" if config["shape"] is None else f" {format_shape(config['shape'])}"
        yield (
            f"cut: the input {printable(name)}{shape} {config['dtype']} is what {source} gives in "
            "the whole model"
        )
