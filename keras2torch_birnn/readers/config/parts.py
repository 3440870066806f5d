"""Cut a parsed model, and drop problems and notes about the layers that are gone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from keras2torch_birnn.errors import K2TError, UnsupportedLayerError, UsageError, printable
from keras2torch_birnn.readers.config.cut import Entrance, Part, cut_model
from keras2torch_birnn.readers.config.cut_advice import propose_cut
from keras2torch_birnn.readers.config.cut_masks import find_user
from keras2torch_birnn.readers.config.cut_names import Path, find_layers
from keras2torch_birnn.readers.config.dialects import plain_value
from keras2torch_birnn.readers.config.input_dtypes import check_input_dtypes
from keras2torch_birnn.readers.config.parsing import Parsing, Whole
from keras2torch_birnn.readers.config.sequential import parse_shape
from keras2torch_birnn.readers.config.text_layers import BARE, TEXT_CLASSES, TextLayer
from keras2torch_birnn.readers.operations.infer_dtypes import infer_dtypes
from keras2torch_birnn.schema import OPS, SCHEMA
from keras2torch_birnn.schema.custom_layers import custom_layer_of
from keras2torch_birnn.schema.dtype_flow import without_time_distributed
from keras2torch_birnn.schema.shape_inference import infer_model
from keras2torch_birnn.spec import Cut, LayerSpec, Shape, Structure, format_shape, leaves

_LOOKUPS = (f"{BARE}StringLookup", f"{BARE}IntegerLookup")
_TRIED = 16  # first layers without which an advice is tried


def take_part(root: LayerSpec, parsing: Parsing, cut: Cut) -> tuple[LayerSpec, Parsing, Whole]:
    """Cut a model; return the part, its problems and notes, and the whole.

    Raises:
        UsageError: the names do not bound a part, or a mask would be lost.
    """
    first, last = find_layers(root, cut)
    known = infer_bare(root, parsing)
    stated = _stated_shapes(parsing, first)
    inputs = leaves(root.graph.inputs) if root.graph else ()
    part = cut_model(root, known, first, last, [None for _ in inputs], stated)
    inside = {layer.place for layer in part.model.walk()}
    parsing = replace(parsing, problems=list(_problems_of(parsing, root, inside)))
    model = _settle_dtypes(part.model, parsing)
    parsing = replace(
        parsing,
        problems=list({(one.place, one.message): one for one in parsing.problems}.values()),
        notes=[*parsing.notes, *_notes(part, parsing)],
        penalties={place: kinds for place, kinds in parsing.penalties.items() if place in inside},
    )
    bare = [layer.place for layer in known.walk() if layer.class_name.startswith(BARE)]
    gone = {place: text for place, text in parsing.texts.items() if place not in inside}
    left_out = frozenset(place for place in bare if place not in inside)
    paths = Cut(tuple(map("/".join, first)), tuple(map("/".join, last)))
    return model, parsing, Whole(_bare(root, parsing, left_out), left_out, gone, paths)


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


def advise(root: LayerSpec, parsing: Parsing) -> None:
    """Name in the refusals the command that converts the rest, if cutting the model helps."""
    refused = find_refused(root, parsing)
    texts = {**parsing.texts, **_hashings(root, refused)}
    cut = propose_cut(root, refused, texts)
    if not cut or not _works(root, parsing, cut):
        return
    cut = _shortest(root, parsing, cut)
    command = f"{parsing.command} {cut.options}"
    for problem in parsing.problems:
        text = texts.get(problem.place)
        if text is not None:
            whole = "" if text.class_name in TEXT_CLASSES else f"{problem.advice}, or "
            problem.advice = f"{whole}cut it off: {command}"
        elif isinstance(problem, UnsupportedLayerError):
            problem.advice = f"if it is for training, cut it off: {command}"


def _hashings(root: LayerSpec, refused: Collection[str]) -> Mapping[str, TextLayer]:
    """Return the refused Hashing layers, by place: they turn text, too, into ids."""
    found = (without_time_distributed(layer) for layer in root.walk())
    return {
        layer.place: TextLayer(layer.class_name)
        for layer in found
        if layer.class_name == "Hashing" and layer.place in refused
    }


def _shortest(root: LayerSpec, parsing: Parsing, cut: Cut) -> Cut:
    """Leave out first layers that share the tensors of others, operations before layers."""
    ours = {layer.place for layer in root.walk() if layer.class_name in OPS}
    for name in sorted(cut.first[:_TRIED], key=lambda name: name not in ours):
        less = Cut(tuple(one for one in cut.first if one != name), cut.last)
        cut = less if less.first and _works(root, parsing, less) else cut
    return cut


def _works(root: LayerSpec, parsing: Parsing, cut: Cut) -> bool:
    """Return whether a cut leaves nothing that is refused."""
    try:
        part, left, _ = take_part(root, parsing, cut)
        if not left.problems:
            check_input_dtypes(part, left)
            infer_model(part, left.problems)
    except K2TError:
        return False
    return not left.problems


def infer_bare(root: LayerSpec, parsing: Parsing) -> LayerSpec:
    """Infer all shapes that can be, with bare layers in the place of those not supported."""
    bare = find_refused(root, parsing)
    unheard: list[K2TError] = []  # of layers that may be cut away
    known = infer_model(_bare(root, parsing, bare), unheard)
    lookups: dict[str, Structure] = {
        layer.place: layer.input_shape
        for layer in known.walk()
        if layer.class_name in _LOOKUPS
        and parsing.texts.get(layer.place, TextLayer("")).output_mode == "int"
    }
    return infer_model(_bare(root, parsing, bare, lookups), unheard) if lookups else known


def _bare(
    layer: LayerSpec,
    parsing: Parsing,
    places: frozenset[str] | set[str],
    shapes: Mapping[str, Shape | None] = {},
) -> LayerSpec:
    """Strip the layers at these places of all but class and name; ``shapes``: of their outputs."""
    if layer.place in places and layer.graph is None:
        text = parsing.texts.get(layer.place)
        gives = text is not None and custom_layer_of(layer) is None
        return LayerSpec(
            f"{BARE}{layer.class_name}",
            layer.name,
            {},
            place=layer.place,
            output_shape=shapes.get(layer.place, text.output_shape if text else None),
            semantics={"gives": text.dtype} if text and gives else {},
        )
    return layer.map_inner(lambda _, one: _bare(one, parsing, places, shapes))


def _prefixes(place: str) -> Iterator[str]:
    """Yield a path and the paths of what is around it, innermost first."""
    yield place
    while "/" in place:
        place = place.rpartition("/")[0]
        yield place


def _problems_of(parsing: Parsing, root: LayerSpec, inside: set[str]) -> Iterator[K2TError]:
    """Yield the problems of the part: of a layer in it, or of no layer at all."""
    every = {layer.place for layer in root.walk()}
    for problem in parsing.problems:
        owner = next((place for place in _prefixes(problem.place) if place in every), None)
        if owner is None or owner in inside:
            yield problem


# ---- what is known of the new inputs ------------------------------------------------------------


def _stated_shapes(parsing: Parsing, first: Sequence[Path]) -> dict[str, Shape]:
    """Return the input shapes that Keras 3 states beside the first layers of the part, by place."""
    stated: dict[str, Shape] = {}
    for place in map("/".join, first):
        shape = plain_value(parsing.built.get(place))
        if isinstance(shape, list) and not any(isinstance(size, list) for size in shape):
            stated[place] = parse_shape(shape, place)
    return stated


def _settle_dtypes(model: LayerSpec, parsing: Parsing) -> LayerSpec:
    """Infer the dtypes of operations again, from the new inputs on."""
    if model.graph is None:
        return model
    layers = tuple(_settle_dtypes(layer, parsing) for layer in model.graph.layers)
    return replace(model, graph=infer_dtypes(replace(model.graph, layers=layers), parsing))


def _notes(part: Part, parsing: Parsing) -> Iterator[str]:
    """Yield what a user of the part should know.

    Raises:
        UsageError: a layer of the part would compute with a mask that it cannot get.
    """
    graph = part.model.graph
    if graph is None:
        return
    new = [one if isinstance(one, Entrance) else None for one in part.inputs]
    given = [one.mask if one else None for one in new]
    found = find_user(graph, given)
    if found is not None:
        user, source = found
        if source.sure:
            raise UsageError(
                f"a mask of {printable(source.place)} reaches {printable(user)}, and the part from "
                "there on has no input for it",
                f"let the part start with --from {printable(source.place)}",
            )
        yield (
            f"{printable(source.place)} is of a class that k2t does not know: a mask that it makes "
            f"or hands on does not reach {printable(user)} here"
        )
    names = [ref.layer for ref in leaves(graph.inputs)]
    for name, entrance in zip(names, new, strict=True):
        if entrance is None:
            continue
        text = parsing.texts.get(entrance.source)
        if text is not None and text.config.get("ragged"):
            raise UsageError(
                f"{printable(entrance.source)} gives ragged ids, rows without padding",
                "make the layer anew with ragged=False, or read the model up to it in Keras",
            )
        config = graph.layer(name).config
        shape = "" if config["shape"] is None else f" {format_shape(config['shape'])}"
        yield (
            f"cut: the input {printable(name)}{shape} {config['dtype']} is what "
            f"{printable(entrance.source)} gives in the whole model"
        )
