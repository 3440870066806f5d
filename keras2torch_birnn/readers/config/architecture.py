"""Config JSON -> LayerSpec tree without weights. Everything unsupported is collected.

Hostile input: no name in the file is ever resolved to anything but a row of ``schema.SCHEMA`` or a
class name that the user registered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal

from keras2torch_birnn.errors import (
    K2TError,
    UnsupportedLayerError,
    expecting_keras,
    invalid,
    printable,
)
from keras2torch_birnn.limits import MAX_MODEL_DEPTH
from keras2torch_birnn.readers.config.calls import build_sequential, drop_taken_masks
from keras2torch_birnn.readers.config.cells import (
    check_alone,
    check_constants,
    check_stack,
    drop_repeated_options,
    infer_mask_rule,
    read_cells,
)
from keras2torch_birnn.readers.config.classes import (
    HOW_TO_WRAP,
    TRANSLATED,
    find_refusal,
    is_custom_class,
    is_operation,
    is_unknown,
)
from keras2torch_birnn.readers.config.custom_layers import (
    check_steps,
    find_custom_class,
    parse_custom_layer,
)
from keras2torch_birnn.readers.config.generations import PASSES, list_refused
from keras2torch_birnn.readers.config.options import (
    check_dtype,
    list_unknown,
    parse_options,
    read_training,
)
from keras2torch_birnn.readers.config.parsing import TEXT_CLASSES, Parsing, UnknownClass, text_layer
from keras2torch_birnn.schema import CLASS_NAMES, OPS, RECURRENT, WITH_GRAPH
from keras2torch_birnn.schema.custom_layers import LAMBDA, class_name_of
from keras2torch_birnn.schema.recurrent import STACK
from keras2torch_birnn.spec import Generation, LayerPath, LayerSpec

MODEL_CLASSES = ("Sequential", "Functional")


def parse_architecture(model: Any, parsing: Parsing) -> LayerSpec:
    """Parse the root object ``{"class_name": ..., "config": ...}``.

    Problems of single layers go to ``parsing.problems``.
    """
    class_name = _class_name(model, "model_config")
    if CLASS_NAMES.get(class_name) not in MODEL_CLASSES or is_custom_class(model):
        raise UnsupportedLayerError(
            f"the model is of class {printable(class_name)}, which its own Python code defines",
            HOW_TO_WRAP,
            place="model_config",
        )
    with expecting_keras("model_config"):
        if parsing.generation.name == "keras1":
            from keras2torch_birnn.readers.config import keras1  # which other files do not need

            parsing.notes += keras1.list_open_questions(model)
            model = keras1.fill_orderings(model)
        return drop_taken_masks(_parse_layer(model, parsing, (), ""), parsing)


def _class_name(entry: Any, place: str) -> str:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class_name"), str):
        raise invalid("no layer's configuration", place)
    return str(entry["class_name"])


@dataclass(frozen=True)
class _Entry:
    """An entry of ``layers`` in the words of today; ``path``: as a ``LayerSpec`` has it.

    ``wrapped``: it is in a Bidirectional. ``cell``: it is the cell of an RNN.
    """

    json: Mapping[str, Any]
    class_name: str
    name: str
    config: Any
    path: LayerPath
    wrapped: bool = False
    cell: bool = False

    @property
    def place(self) -> str:
        """The path as a text."""
        return "/".join(self.path)

    @property
    def options(self) -> Mapping[str, Any]:
        """The config; empty if it is a list of layers."""
        return self.config if isinstance(self.config, Mapping) else {}


def _parse_layer(
    json: Any,
    parsing: Parsing,
    outer: LayerPath,
    key: str | None = None,
    *,
    wrapped: bool = False,
    cell: bool = False,
) -> LayerSpec:
    """Parse a layer of any class; each problem in it is told its class.

    ``outer``: the path of what holds it. ``key``: the end of its own path, if not its name.
    Problems that the user can solve are added to ``parsing.problems``.
    """
    before = len(parsing.problems)
    json = _pass(json, parsing.generation, outer)
    entry = _read_entry(json, outer, key, wrapped=wrapped, cell=cell)
    for found in list_refused(json):
        parsing.refuse(found, "", entry.place)
    layer = _parse_kind(entry, parsing)
    for problem in parsing.problems[before:]:
        problem.class_name = problem.class_name or layer.class_name
    return layer


def _pass(json: Any, generation: Generation, outer: LayerPath) -> Any:
    """Bring an entry to the words of today, unless a plugin supplies the class as it is."""
    if class_name_of([_class_name(json, "/".join(outer) or "model_config")]) is not None:
        return json
    return reduce(lambda entry, change: change(entry), PASSES.get(generation.name, ()), json)


def _read_entry(
    json: Any, outer: LayerPath, key: str | None, *, wrapped: bool, cell: bool
) -> _Entry:
    place = "/".join(outer) or "model_config"
    class_name, config = _class_name(json, place), json.get("config")
    if not isinstance(config, Mapping | list):
        raise invalid("a layer without config", place)
    named = config if isinstance(config, Mapping) else {}
    name = json.get("name", named.get("name", class_name.lower()))
    if not isinstance(name, str):
        raise invalid("a layer's name is not a text", place)
    path = outer if key == "" else (*outer, name if key is None else key)
    if len(path) > MAX_MODEL_DEPTH:
        raise invalid(f"layers nested deeper than {MAX_MODEL_DEPTH}", printable("/".join(path)))
    return _Entry(json, class_name, name, config, path, wrapped, cell)


def _parse_kind(entry: _Entry, parsing: Parsing) -> LayerSpec:
    """Parse an entry as what it is: a plugin's layer, a wrapper, refused, a model or a layer."""
    own = find_custom_class(entry.json, entry.name, entry.place)
    if own is not None:
        return _parse_custom(own, entry, parsing)
    _note_facts(entry, parsing)
    refusal = find_refusal(entry.json, entry.class_name, parsing.command)
    if refusal is not None:
        return _refuse(refusal, entry, parsing)
    key = f"ops.{entry.class_name}" if is_operation(entry.json) else entry.class_name
    class_name = CLASS_NAMES[key]
    parse = _parse_model if class_name in WITH_GRAPH else _parse_plain
    return parse(class_name, entry, parsing)


def _parse_custom(class_name: str, entry: _Entry, parsing: Parsing) -> LayerSpec:
    check_dtype(entry.options.get("dtype"), parsing, entry.place)
    layer = parse_custom_layer(class_name, entry.name, entry.config, entry.path, parsing)
    if not entry.cell:
        check_alone(layer, parsing)
    training = _read_training(entry.class_name, entry.options, parsing, entry.place)
    return replace(layer, training=training)


def _note_facts(entry: _Entry, parsing: Parsing) -> None:
    """Keep what a cut asks for: the layers that read text."""
    if entry.class_name in TEXT_CLASSES and isinstance(entry.config, Mapping):
        parsing.texts[entry.place] = text_layer(entry.class_name, entry.config)


def _refuse(refusal: K2TError, entry: _Entry, parsing: Parsing) -> LayerSpec:
    """Add the problem; return a layer without options in the refused one's place."""
    refusal.place = entry.place
    parsing.problems.append(refusal)
    class_name = entry.class_name
    if class_name == LAMBDA or is_unknown(entry.json, class_name):
        kind: Literal["layer", "Lambda"] = "Lambda" if class_name == LAMBDA else "layer"
        parsing.unknown.append(UnknownClass(class_name, kind, entry.place, entry.options))
    return LayerSpec(class_name, entry.name, {}, path=entry.path)


def _parse_plain(class_name: str, entry: _Entry, parsing: Parsing) -> LayerSpec:
    """Parse a layer of Keras: its parts, then its options, then what they mean together."""
    if not isinstance(entry.config, Mapping):
        raise invalid("a layer's config is a list", entry.place)
    before, place = len(parsing.problems), entry.place
    if class_name in ("RNN", STACK):
        entry = replace(entry, config=drop_repeated_options(entry.config))
    config, parse_parts = entry.config, _PARTS.get(class_name)
    parts = {} if parse_parts is None else parse_parts(class_name, entry, parsing)
    options, semantics = parse_options(
        entry.class_name, class_name, config, parsing, place, wrapped=entry.wrapped
    )
    layer = LayerSpec(
        class_name,
        entry.name,
        options,
        parts=parts,
        path=entry.path,
        semantics=semantics,
        training=_read_training(class_name, config, parsing, place),
    )
    if not entry.cell:
        check_alone(layer, parsing)
    check_stack(layer, parsing)
    check_constants(layer, config, parsing)
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


# ---- wrappers ---------------------------------------------------------------------------------


def _parse_inner(
    key: str, entry: _Entry, parsing: Parsing, part: str = "", *, wrapped: bool = False
) -> LayerSpec:
    """Parse what a wrapper holds under ``key``; ``part``: the end of its path, if not the key."""
    inner = _parse_layer(entry.config[key], parsing, entry.path, part or key, wrapped=wrapped)
    if inner.class_name in OPS:
        raise invalid("an operation in a wrapper", inner.place)
    return inner


def _parse_steps(_: str, entry: _Entry, parsing: Parsing) -> dict[str, LayerSpec]:
    """Parse the layer in a TimeDistributed."""
    inner = _parse_inner("layer", entry, parsing)
    check_steps(inner, entry.place, parsing)
    return {"layer": inner}


def _parse_cells(class_name: str, entry: _Entry, parsing: Parsing) -> dict[str, LayerSpec]:
    """Parse the cell of an RNN, or those of a stack."""

    def parse(inner: Any, key: str) -> LayerSpec:
        return _parse_layer(inner, parsing, entry.path, key, cell=True)

    return read_cells(class_name, entry.config, entry.path, parsing, parse)


def _parse_halves(_: str, entry: _Entry, parsing: Parsing) -> dict[str, LayerSpec]:
    """Parse both halves, each with its own explicit ``go_backwards``.

    Without ``backward_layer`` (Keras 2 and tf.keras write it only when the user gave one) the
    backward half is the forward one's twin with ``go_backwards`` turned round
    (Keras 2.2.4 ``layers/wrappers.py``, tf.keras 2.15 ``layers/rnn/bidirectional.py``).
    """
    config, place = entry.config, entry.place
    forward = _parse_inner("layer", entry, parsing, "forward_layer", wrapped=True)
    if config.get("backward_layer") is not None:
        backward = _parse_inner("backward_layer", entry, parsing, wrapped=True)
    elif forward.class_name in RECURRENT and forward.config:  # it was not refused
        twin = config["layer"]
        mirrored = {
            **twin["config"],
            "go_backwards": not twin["config"].get("go_backwards", False),
        }
        quiet = Parsing(parsing.generation)  # its problems are the forward half's
        backward = _parse_layer(
            {**twin, "config": mirrored}, quiet, entry.path, "backward_layer", wrapped=True
        )
        parsing.of_tensorflow_1 |= quiet.of_tensorflow_1
    else:  # refused below; without what is in it, or nesting would double it every time
        path = (*entry.path, "backward_layer")
        backward = replace(forward, parts={}, graph=None, path=path)
    places = {problem.place for problem in parsing.problems}
    for half in (forward, backward) if config.get("backward_layer") is not None else (forward,):
        if half.class_name not in RECURRENT and half.place not in places:
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
    return {"forward_layer": forward, "backward_layer": backward}


def _check_halves(forward: LayerSpec, backward: LayerSpec, parsing: Parsing, place: str) -> None:
    if forward.config["go_backwards"] == backward.config["go_backwards"]:
        parsing.refuse(
            "both halves of the Bidirectional read in the same direction (go_backwards), "
            "which Keras refuses",
            "give backward_layer the other go_backwards and save again",
            place,
        )
    for key in ("return_sequences", "return_state", "stateful"):
        if forward.config[key] != backward.config[key]:
            parsing.refuse(
                f"the halves of the Bidirectional differ in {key}, which Keras refuses",
                "make them equal and save again",
                place,
            )


_PARTS: Mapping[str, Callable[[str, _Entry, Parsing], dict[str, LayerSpec]]] = {
    "Bidirectional": _parse_halves,
    "TimeDistributed": _parse_steps,
    "RNN": _parse_cells,
    STACK: _parse_cells,
}


# ---- models -----------------------------------------------------------------------------------


def _parse_model(class_name: str, entry: _Entry, parsing: Parsing) -> LayerSpec:
    """Parse the layers of a model, and connect them to a graph."""
    config, place = entry.config, entry.place
    entries = config if isinstance(config, list) else config.get("layers")
    if any(isinstance(one, Mapping) and one.get("module") == TRANSLATED for one in entries):
        raise invalid(f"a layer of the module {TRANSLATED!r}, which no Keras has", place)
    if class_name == "Functional":
        from keras2torch_birnn.readers.config.graphs import connect  # which others do not need
        from keras2torch_birnn.readers.operations import translate_layers

        entries = translate_layers(entries)
    layers = tuple(_parse_layer(one, parsing, entry.path) for one in entries)
    if not layers:
        raise invalid("a model without layers", place or "model_config")
    names = [layer.name for layer in layers]
    repeated, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise invalid(f"{times} layers are called {printable(repeated)}", place)
    if class_name == "Functional":
        graph = connect(layers, entries, config, place, parsing)
    else:
        graph = build_sequential(layers, entries, entry.options, entry.path)
    trainable = entry.options.get("trainable", True) is not False
    return LayerSpec(class_name, entry.name, {"trainable": trainable}, graph=graph, path=entry.path)
