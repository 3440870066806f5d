"""Config JSON -> LayerSpec tree without weights. Everything unsupported is collected.

Hostile input: no name in the file is ever resolved to anything but a row of ``schema.SCHEMA`` or a
class name that the user registered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from keras2torch_birnn.errors import (
    InvalidModelFileError,
    K2TError,
    UnsupportedLayerError,
    UnsupportedOptionError,
    printable,
)
from keras2torch_birnn.limits import MAX_MODEL_DEPTH
from keras2torch_birnn.readers.advice import HOW_TO_REPLACE, HOW_TO_WRAP
from keras2torch_birnn.readers.config import keras1
from keras2torch_birnn.readers.config.calls import resolve_masks
from keras2torch_birnn.readers.config.cells import (
    check_alone,
    check_constants,
    check_stack,
    drop_repeated_options,
    infer_mask_rule,
    read_cells,
)
from keras2torch_birnn.readers.config.custom_layers import (
    check_steps,
    find_custom_class,
    parse_custom_layer,
)
from keras2torch_birnn.readers.config.custom_objects import describe_custom_class, is_custom_class
from keras2torch_birnn.readers.config.graphs import build_functional, build_sequential
from keras2torch_birnn.readers.config.keras1_merge import replace_merges
from keras2torch_birnn.readers.config.options import check_dtype, parse_options
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.readers.config.penalties import list_unknown, read_training
from keras2torch_birnn.readers.config.text_layers import (
    LOOKUP_CLASSES,
    TEXT_CLASSES,
    text_layer,
)
from keras2torch_birnn.readers.config.unknown_classes import UnknownClass
from keras2torch_birnn.readers.operations import OPERATION_MODULES, translate_layers
from keras2torch_birnn.readers.operations.infer_dtypes import infer_dtypes
from keras2torch_birnn.readers.operations.values import TRANSLATED
from keras2torch_birnn.readers.weights.spectral import is_wrapper, mark, unwrap_entry
from keras2torch_birnn.schema import (
    CLASS_NAMES,
    OPS,
    RECURRENT,
)
from keras2torch_birnn.schema.cells import STACK
from keras2torch_birnn.schema.custom_layers import LAMBDA, class_name_of, python_name
from keras2torch_birnn.schema.shipped import advise_shipped
from keras2torch_birnn.spec import Graph, LayerSpec

MODEL_CLASSES = ("Sequential", "Functional")

_REFUSED_CLASSES: Mapping[str, str] = {
    LAMBDA: "holds Python code, which k2t never runs",
    "TorchModuleWrapper": "holds a pickle, which k2t never opens",
    "TFSMLayer": "loads a TensorFlow SavedModel from elsewhere",
    "StringLookup": "looks up text, which torch does not hold",
    "TextVectorization": "turns text into ids, which torch does not do",
    "HashedCrossing": "hashes pairs of features into bins; do that before the model",
}
_HOW_TO_BEGIN = "begin with k2t plugin new MODEL > my_layers.py"
_HOW_TO_SUPPLY = (
    f"`k2t layers` lists what can be converted; for a layer of your own {_HOW_TO_BEGIN}"
)
# Layers that Keras 1 has and no later Keras, in words for their plugin.
_KERAS_1_ALONE: Mapping[str, str] = {
    "ParametricSoftplus": "return self.alphas * nn.functional.softplus(self.betas * x)",
    "SReLU": "return what call() of Keras 1 computes",
}
_REFUSED_ADVICE: Mapping[str, str] = {
    LAMBDA: "write what it computes in torch, under @k2t.supplies(its name) in a --plugin file",
    "TorchModuleWrapper": "save the model without it, and call the torch module that it wraps",
    "TFSMLayer": "convert that SavedModel by itself",
    "HashedCrossing": "cut it off with --from or --to (docs/cutting.md)",
    **dict.fromkeys(
        TEXT_CLASSES,
        "do that before the model, and cut the layer off with --from or --to (docs/cutting.md)",
    ),
}


def parse_architecture(model: Any, parsing: Parsing) -> LayerSpec:
    """Parse the root object ``{"class_name": ..., "config": ...}``.

    Problems of single layers go to ``parsing.problems``.

    Raises:
        InvalidModelFileError: the text has not the structure of a Keras model.
    """
    class_name = _class_name(model, "model_config")
    if CLASS_NAMES.get(class_name) not in MODEL_CLASSES or is_custom_class(model):
        raise UnsupportedLayerError(
            f"the model is of class {printable(class_name)}, which its own Python code defines",
            HOW_TO_WRAP,
            place="model_config",
        )
    if parsing.generation.name == "keras1":
        parsing.notes += keras1.list_open_questions(model)
        model = keras1.fill_orderings(model)
    return _parse_layer(model, parsing, "", depth=0)


def _class_name(entry: Any, place: str) -> str:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class_name"), str):
        raise InvalidModelFileError("no layer's configuration", "refused", place=place)
    return str(entry["class_name"])


def _config(entry: Mapping[str, Any], place: str) -> Any:
    config = entry.get("config")
    if not isinstance(config, Mapping | list):
        raise InvalidModelFileError("a layer without config", "refused", place=place)
    return config


def _parse_layer(
    entry: Any,
    parsing: Parsing,
    outer: str,
    *,
    depth: int,
    wrapped: bool = False,
    cell: bool = False,
) -> LayerSpec:
    """Parse a layer, and tell its class to each problem in it."""
    before = len(parsing.problems)
    layer = _parse_entry(entry, parsing, outer, depth, wrapped=wrapped, cell=cell)
    for problem in parsing.problems[before:]:
        problem.class_name = problem.class_name or layer.class_name
    return layer


def _parse_entry(
    entry: Any, parsing: Parsing, outer: str, depth: int, *, wrapped: bool, cell: bool
) -> LayerSpec:
    """Parse a layer of any class: first bring it to the words of today, then find its kind.

    Its kind is a custom class, a wrapper of the file's generation, one that is refused, a model, or
    a layer with a row in the schema. outer: the place of the model around it. wrapped: in a
    wrapper. cell: in an RNN. What is not supported is added to ``parsing.problems``.

    Raises:
        InvalidModelFileError: the entry is broken, or nested too deep.
    """
    file_class = _class_name(entry, outer or "model_config")
    refused: list[str] = []
    supplied = class_name_of([file_class]) is not None
    if parsing.generation.name == "keras1" and not supplied:
        refused, entry = keras1.list_unsupported_options(entry), keras1.modernize(entry)
        file_class = _class_name(entry, outer or "model_config")
    elif parsing.generation.name == "keras2" and not supplied:
        entry = replace_merges(entry, masks_stay=False)
        file_class = _class_name(entry, outer or "model_config")
    config = _config(entry, outer or "model_config")
    named = config if isinstance(config, Mapping) else {}
    name = entry.get("name", named.get("name", file_class.lower()))
    if not isinstance(name, str):
        raise InvalidModelFileError("a layer's name is not a text", "refused", place=outer)
    place = f"{outer}/{name}" if outer else name
    if depth > MAX_MODEL_DEPTH:
        raise InvalidModelFileError(
            f"layers nested deeper than {MAX_MODEL_DEPTH}", "refused", place=printable(place)
        )
    parsing.problems += [UnsupportedOptionError(found, place=place) for found in refused]
    own_class = find_custom_class(entry, name, place)
    if own_class is not None:
        check_dtype(named.get("dtype"), parsing, place)
        custom = parse_custom_layer(
            own_class, name, config, parsing.generation, place, parsing.problems
        )
        if not cell:
            check_alone(custom, parsing.problems)
        return replace(custom, training=_read_training(file_class, named, parsing, place))
    if is_wrapper(entry, parsing.generation):
        return _parse_wrapped(entry, named, name, parsing, outer, place, depth)
    if file_class in LOOKUP_CLASSES and isinstance(config, Mapping):
        parsing.texts[place] = text_layer(file_class, config)
    if isinstance(entry.get("build_config"), Mapping):
        parsing.built[place] = entry["build_config"].get("input_shape")
    refusal = _refusal(entry, file_class, parsing)
    if refusal is not None:
        refusal.place = place
        parsing.problems.append(refusal)
        if file_class == LAMBDA or _is_unknown(entry, file_class):
            kind: Literal["layer", "Lambda"] = "Lambda" if file_class == LAMBDA else "layer"
            parsing.unknown.append(UnknownClass(file_class, kind, place, named))
        return LayerSpec(file_class, name, {}, place=place)
    class_name = CLASS_NAMES[_schema_key(entry, file_class)]
    if class_name in MODEL_CLASSES:
        return _parse_model(class_name, name, config, parsing, place, depth)
    if not isinstance(config, Mapping):
        raise InvalidModelFileError("a layer's config is a list", "refused", place=place)
    before = len(parsing.problems)
    if class_name == "Bidirectional":
        parts = _parse_halves(config, parsing, place, depth)
    elif class_name == "TimeDistributed":
        parts = {"layer": _parse_inner(config, "layer", parsing, place, depth)}
        check_steps(parts["layer"], place, parsing.problems)
    elif class_name in ("RNN", STACK):
        config = drop_repeated_options(config)
        parts = read_cells(
            class_name,
            config,
            place,
            parsing,
            lambda inner: _parse_layer(inner, parsing, place, depth=depth + 1, cell=True),
        )
    else:
        parts = {}
    options, semantics = parse_options(
        file_class, class_name, config, parsing, place, wrapped=wrapped
    )
    layer = LayerSpec(
        class_name,
        name,
        options,
        parts=parts,
        place=place,
        semantics=semantics,
        training=_read_training(class_name, config, parsing, place),
    )
    if not cell:
        check_alone(layer, parsing.problems)
    check_stack(layer, parsing.generation, parsing.problems)
    check_constants(layer, config, parsing.problems)
    if class_name == "RNN" and len(parsing.problems) == before:
        return infer_mask_rule(layer, parsing.generation)
    return layer


def _read_training(
    class_name: str, config: Mapping[str, Any], parsing: Parsing, place: str
) -> dict[str, dict[str, Any]]:
    training = read_training(class_name, config, parsing.generation)
    if unknown := list_unknown(config, training):
        parsing.penalties[place] = unknown
    return training


def _refusal(entry: Mapping[str, Any], class_name: str, parsing: Parsing) -> K2TError | None:
    """Return why this layer's class cannot be converted, or None."""
    shown = printable(class_name)
    if class_name in _REFUSED_CLASSES:
        advice = _REFUSED_ADVICE.get(class_name, "")
        return UnsupportedLayerError(f"{shown} layer {_REFUSED_CLASSES[class_name]}", advice)
    problem = entry.get("problem")
    if isinstance(problem, K2TError):  # of an operation
        return problem
    if _is_operation(entry):
        if f"ops.{class_name}" in CLASS_NAMES:
            return None
        return UnsupportedLayerError(f"operation {shown} is not supported", HOW_TO_REPLACE)
    if _is_unknown(entry, class_name):
        if class_name in _KERAS_1_ALONE and parsing.generation.name == "keras1":
            advice = f"{_HOW_TO_BEGIN}, and in its forward {_KERAS_1_ALONE[class_name]}"
            return UnsupportedLayerError(
                f"layer class {shown}, of Keras 1 alone, is not supported", advice
            )
        if class_name in CLASS_NAMES:
            found = f"layer class {shown} is not supported: it is {describe_custom_class(entry)}"
            return UnsupportedLayerError(found, f"supply it with --plugin: {_HOW_TO_BEGIN}")
        names = (entry.get("registered_name"), class_name, python_name(class_name))
        shipped = advise_shipped(names, parsing.command)
        advice = f"{shipped}; {_HOW_TO_SUPPLY}" if shipped else _HOW_TO_SUPPLY
        return UnsupportedLayerError(f"layer class {shown} is not supported", advice)
    return None


def _is_unknown(entry: Mapping[str, Any], class_name: str) -> bool:
    """Tell whether a layer's class is none of Keras' own, and no operation."""
    problem = isinstance(entry.get("problem"), K2TError)  # of an operation
    if class_name in _REFUSED_CLASSES or problem or _is_operation(entry):
        return False
    return class_name not in CLASS_NAMES or class_name in OPS or is_custom_class(entry)


# Layers of Keras 3 whose config leaves ``trainable`` out; no operation has their names.
_WITHOUT_TRAINABLE = frozenset(
    "SpatialDropout1D SpatialDropout2D SpatialDropout3D Discretization HashedCrossing".split()
)


def _is_operation(entry: Mapping[str, Any]) -> bool:
    """Tell whether an entry is an operation of Keras 3, not a layer of the same name.

    The module says so in a ``.keras`` file. In an ``.h5`` there is none, but nearly every layer of
    Keras 3 has ``trainable`` in its config and no operation has; ``inbound_nodes`` are dicts in
    Keras 3.
    """
    module, nodes, config = entry.get("module"), entry.get("inbound_nodes"), entry.get("config")
    if isinstance(module, str):
        return module.startswith(OPERATION_MODULES)
    dict_nodes = isinstance(nodes, list) and any(isinstance(n, Mapping) for n in nodes)
    bare = isinstance(config, Mapping) and "trainable" not in config
    class_name = entry.get("class_name")
    named = isinstance(class_name, str) and class_name not in _WITHOUT_TRAINABLE
    return dict_nodes and bare and named


def _schema_key(entry: Mapping[str, Any], file_class: str) -> str:
    return f"ops.{file_class}" if _is_operation(entry) else file_class


# ---- wrappers ---------------------------------------------------------------------------------


def _parse_wrapped(
    entry: Mapping[str, Any],
    config: Mapping[str, Any],
    name: str,
    parsing: Parsing,
    outer: str,
    place: str,
    depth: int,
) -> LayerSpec:
    """Parse a SpectralNormalization as the layer in it, which it is at inference."""
    try:
        inner = unwrap_entry(entry, name, parsing.generation, place)
    except (UnsupportedLayerError, UnsupportedOptionError) as error:
        parsing.problems.append(error)
        return LayerSpec(str(entry["class_name"]), name, {}, place=place)
    check_dtype(config.get("dtype"), parsing, place)
    layer = _parse_layer(inner, parsing, outer, depth=depth + 1)
    return mark(layer, parsing)


def _parse_inner(
    config: Mapping[str, Any],
    key: str,
    parsing: Parsing,
    place: str,
    depth: int,
    *,
    wrapped: bool = False,
) -> LayerSpec:
    if key not in config:
        raise InvalidModelFileError(f"a wrapper without {key}", "refused", place=place)
    inner = _parse_layer(config[key], parsing, place, depth=depth + 1, wrapped=wrapped)
    if inner.class_name in OPS:
        raise InvalidModelFileError("an operation in a wrapper", "refused", place=inner.place)
    return inner


def _parse_halves(
    config: Mapping[str, Any], parsing: Parsing, place: str, depth: int
) -> dict[str, LayerSpec]:
    """Parse both halves, each with its own explicit ``go_backwards``.

    Without ``backward_layer`` (Keras 2 and tf.keras write it only when the user gave one) the
    backward half is the forward one's twin with ``go_backwards`` turned round
    (Keras 2.2.4 ``layers/wrappers.py``, tf.keras 2.15 ``layers/rnn/bidirectional.py``).
    """
    forward = _parse_inner(config, "layer", parsing, place, depth, wrapped=True)
    if config.get("backward_layer") is not None:
        backward = _parse_inner(config, "backward_layer", parsing, place, depth, wrapped=True)
    elif forward.class_name in RECURRENT and forward.config:  # it was not refused
        entry = config["layer"]
        mirrored = {
            **entry["config"],
            "go_backwards": not entry["config"].get("go_backwards", False),
        }
        quiet = Parsing(parsing.generation)  # its problems are the forward half's
        backward = _parse_layer(
            {**entry, "config": mirrored}, quiet, place, depth=depth + 1, wrapped=True
        )
    else:  # refused below; without what is in it, or nesting would double it every time
        backward = replace(forward, parts={}, graph=None)
    for half in (forward, backward):
        refused = any(half.place == problem.place for problem in parsing.problems)
        if half.class_name not in RECURRENT and not refused:
            parsing.problems.append(
                UnsupportedLayerError(
                    f"Bidirectional over {printable(half.class_name)} is not supported",
                    f"it takes {', '.join(RECURRENT)}; supply the whole with --plugin, as a layer "
                    "of your own instead of Bidirectional",
                    place=place,
                )
            )
            break
    halves = (forward, backward)
    if all(h.class_name in RECURRENT and h.config for h in halves):  # none was refused
        _check_halves(forward, backward, parsing, place)
    parts = {
        "forward_layer": replace(forward, place=f"{place}/forward_layer"),
        "backward_layer": replace(backward, place=f"{place}/backward_layer"),
    }
    if parsing.of_tensorflow_1 & {forward.place, backward.place}:
        parsing.of_tensorflow_1.update(half.place for half in parts.values())
    return parts


def _check_halves(forward: LayerSpec, backward: LayerSpec, parsing: Parsing, place: str) -> None:
    if forward.config["go_backwards"] == backward.config["go_backwards"]:
        parsing.problems.append(
            UnsupportedOptionError(
                "both halves of the Bidirectional read in the same direction (go_backwards), "
                "which Keras refuses",
                "give backward_layer the other go_backwards and save again",
                place=place,
            )
        )
    for key in ("return_sequences", "return_state", "stateful"):
        if forward.config[key] != backward.config[key]:
            parsing.problems.append(
                UnsupportedOptionError(
                    f"the halves of the Bidirectional differ in {key}, which Keras refuses",
                    "make them equal and save again",
                    place=place,
                )
            )


# ---- models -----------------------------------------------------------------------------------


def _parse_model(
    class_name: str, name: str, config: Any, parsing: Parsing, place: str, depth: int
) -> LayerSpec:
    """Parse the layers of a Sequential or Functional model, and connect them to a graph.

    Raises:
        InvalidModelFileError: it has no layers, two of one name, or a broken graph.
    """
    entries = config if isinstance(config, list) else config.get("layers")
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise InvalidModelFileError(
            "a model without layers", "refused", place=place or "model_config"
        )
    if any(isinstance(entry, Mapping) and entry.get("module") == TRANSLATED for entry in entries):
        raise InvalidModelFileError(
            f"a layer of the module {TRANSLATED!r}, which no Keras has", "refused", place=place
        )
    # The root's own name is no part of a place: a reader of messages knows which model it is.
    inner = place if depth else ""
    if class_name != "Sequential":
        entries = translate_layers(entries, _is_operation)
    layers = tuple(_parse_layer(e, parsing, inner, depth=depth + 1) for e in entries)
    names = [layer.name for layer in layers]
    repeated, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise InvalidModelFileError(
            f"{times} layers are called {printable(repeated)}", "refused", place=place
        )
    graph: Graph
    if class_name == "Sequential":
        declared = config if isinstance(config, Mapping) else {}
        graph = build_sequential(layers, entries, declared, place)
    else:
        if not isinstance(config, Mapping):
            raise InvalidModelFileError("a Functional model's config is a list", place=place)
        graph = build_functional(
            layers,
            entries,
            config,
            place,
            parsing.problems,
            # "3.0" is also what a text of Keras 3 counts as that names no version.
            counts_all_calls=parsing.generation.version.split(".")[:2] in (["3", "0"], ["3", "1"]),
        )
        graph = resolve_masks(graph, parsing.generation, parsing.problems, parsing.notes)
        half = any("computed in float32" in note for note in parsing.notes)
        graph = infer_dtypes(graph, parsing.generation, parsing.problems, half=half)
    return LayerSpec(class_name, name, {"trainable": _trainable(config)}, graph=graph, place=place)


def _trainable(config: Any) -> bool:
    return not isinstance(config, Mapping) or config.get("trainable", True) is not False
