"""Write the beginning of a plugin for the classes of a file that have no converter.

Text of the file reaches it as checked identifiers, as literals, or as printable comments only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from keras2torch_birnn.errors import K2TError, UsageError, gather, printable
from keras2torch_birnn.layers.attribute_names import attribute_names
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers.config.custom_layers import EVERY_LAYER
from keras2torch_birnn.readers.config.dialects import has_effect
from keras2torch_birnn.readers.config.parsing import UnknownClass
from keras2torch_birnn.readers.containers import opened
from keras2torch_birnn.readers.containers.container import Container, ModelSource
from keras2torch_birnn.readers.steps import PathLike, infer_shapes, parse
from keras2torch_birnn.readers.weights.load_weights import find_weights
from keras2torch_birnn.readers.weights.v3 import snake_case
from keras2torch_birnn.schema.custom_layers import REGISTERED, CustomLayer, python_name
from keras2torch_birnn.spec import Shape

# Names that the text itself uses.
_OWN_NAMES = ("torch", "nn", "k2t")
# Options by which cells name the size of their state, the likeliest first.
_SIZE_OPTIONS = ("units", "state_size", "hidden_size", "output_dim")
_OPTION_WIDTH = 60  # characters of an option's value
_WIDTH = 88  # of a line, as formatters have it by default
_FORWARD = ("    def forward(self, x: torch.Tensor) -> torch.Tensor:",)
_CELL_FORWARD = (
    "    def forward(",
    "        self, x: torch.Tensor, states: tuple[torch.Tensor, ...]",
    "    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:",
)


@dataclass(frozen=True)
class PluginText:
    """The text of a plugin, the classes and Lambdas in it, and notes for its author."""

    text: str
    names: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Facts of a file about the layers without a converter, by their places.

    ``weights``: shapes by name, as the converter gets them. ``inputs``: the shapes of their inputs.
    ``listed``: the file's own names of weights that a plugin must name itself.
    """

    weights: Mapping[str, Mapping[str, Shape]]
    inputs: Mapping[str, Any]
    listed: Mapping[str, Sequence[str]]
    notes: tuple[str, ...] = ()


def write_plugin(
    path: ModelSource, *, config: PathLike | None = None, plugins: Iterable[PluginName] = ()
) -> PluginText:
    """Write a plugin with a stub for each class of a model that has no converter.

    plugins: of the classes that have one. Nothing in the file is run or imported.

    Raises:
        UsageError: every class has a converter; UnsupportedLayerError, UnsupportedOptionError:
            what is not supported needs no plugin; InvalidModelFileError: the file is broken.
    """
    load_plugins(plugins)
    with opened(path) as container:
        reading = parse(container, config=config)
        unknown = reading.parsing.unknown
        if not unknown:
            reading.check()
            raise UsageError("every layer has a converter", "no plugin is needed")
        facts = _find_facts(container, config, unknown)
    return _write(container.source.name, unknown, facts)


# ---- facts ---------------------------------------------------------------------------------------


def _find_facts(
    container: Container,
    config: PathLike | None,
    unknown: Sequence[UnknownClass],
) -> Facts:
    """Read the model again as if the classes had converters that name no weights."""
    with _registered(unknown):
        reading = infer_shapes(parse(container, config=config))
        inputs = {layer.place: layer.input_shape for layer in reading.root.walk()}
        if reading.problems:
            lines = tuple(f"also not supported: {p}" for p in gather(reading.problems).lines())
            return Facts({}, inputs, {}, lines)
        try:
            located = find_weights(reading.root, container, reading.parsing, None)
        except K2TError:  # weights of layers inside one of them
            return Facts({}, inputs, _list_names(container, unknown))
    weights = {
        row.layer.place: {name: array.shape for name, array in row.arrays.items()}
        for row in located.rows
    }
    return Facts(weights, inputs, {})


@contextmanager
def _registered(unknown: Sequence[UnknownClass]) -> Iterator[None]:
    """Register converters of these classes that no model is built with."""
    layers: dict[str, CustomLayer] = {}
    lambdas: dict[str, CustomLayer] = {}
    for one in unknown:
        if one.kind == "Lambda":
            lambdas[one.place] = CustomLayer(_build_nothing, weights=())
        else:
            size = _size_option(one.config) if one.kind == "cell" else None
            layers[one.class_name] = CustomLayer(_build_nothing, state_size=size)
    REGISTERED.layers.update(layers)
    REGISTERED.lambdas.update(lambdas)
    try:
        yield
    finally:
        for name in layers:
            del REGISTERED.layers[name]
        for name in lambdas:
            del REGISTERED.lambdas[name]


def _build_nothing(layer: object) -> None:
    """Stand for a converter."""


def _size_option(config: Mapping[str, Any]) -> str | int:
    """Return the option that seems to hold the size of a cell's state; 1 if there is none."""
    sizes = [key for key, value in config.items() if type(value) is int and value > 0]
    return next((key for key in (*_SIZE_OPTIONS, *sizes) if key in sizes), 1)


def _list_names(
    container: Container, unknown: Sequence[UnknownClass]
) -> Mapping[str, Sequence[str]]:
    """List the weights whose names have the layer or its class in them, else what holds it."""
    names = {
        name: {*name.split("/"), *path.split("/")}
        for name, path in container.weight_names().items()
    }
    found: dict[str, Sequence[str]] = {}
    for one in unknown:
        *outer, own = one.place.split("/")
        near = ({own, snake_case(one.class_name)}, *({name} for name in reversed(outer)))
        lists = ([name for name, parts in names.items() if words & parts] for words in near)
        found[one.place] = next(filter(None, lists), [])
    return found


# ---- text ----------------------------------------------------------------------------------------


def _write(file: str, unknown: Sequence[UnknownClass], facts: Facts) -> PluginText:
    classes: dict[str, list[UnknownClass]] = {}
    for one in unknown:
        if one.kind != "Lambda":
            classes.setdefault(one.class_name, []).append(one)
    lambdas = {one.place: one for one in unknown if one.kind == "Lambda"}
    names = _name_classes(list(classes))
    stubs = [_class_stub(names[key], layers, facts) for key, layers in classes.items()]
    stubs += [_lambda_stub(layer) for layer in lambdas.values()]
    head = [
        f"# Layers of {printable(file)} that k2t has no converter for.",
        "# Compute in each forward what call() of the Keras class computes. The arguments of the",
        "# decorators: docs/plugins.md.",
        "",
        "import keras2torch_birnn as k2t",
        "import torch",
        *(["from torch import nn"] if classes else []),
    ]
    text = "\n\n\n".join("\n".join(lines) for lines in (head, *stubs))
    return PluginText(f"{text}\n", (*classes, *lambdas), facts.notes)


def _name_classes(class_names: Sequence[str]) -> dict[str, str]:
    """Return a name in Python for each class: without its package, if that is unique."""
    short: dict[str, str] = {}
    for name in class_names:
        own = python_name(name)
        short[name] = name if own in short.values() else own
    identifiers = attribute_names([*_OWN_NAMES, *short.values()])
    return {name: identifiers[own] for name, own in short.items()}


def _name_function(verb: str, name: str) -> str:
    return re.sub(r"\W", "_", f"{verb}_{name}", flags=re.ASCII)


def _lambda_stub(layer: UnknownClass) -> list[str]:
    stated = layer.config.get("arguments")
    given = dict(stated) if isinstance(stated, Mapping) else {}
    given.pop("mask", None)  # Keras 2 leaves the last call's there
    task = printable(f"what the Lambda {layer.place} computes")
    return [
        *([f"# Its arguments, by name: {_shown(given)}"] if given else []),
        f"@k2t.supplies({_literal(layer.place)})",
        f"def {_name_function('compute', layer.place)}(x: torch.Tensor) -> torch.Tensor:",
        f"    raise NotImplementedError({_literal(task)})",
    ]


def _class_stub(name: str, layers: Sequence[UnknownClass], facts: Facts) -> list[str]:
    """Write the lines of a module class with options and weights as the file has them.

    layers: those of the class; the first one is the example. The user fills in ``forward``.
    """
    first = layers[0]
    cell = first.kind == "cell"
    weights = facts.weights.get(first.place, {})
    listed = facts.listed.get(first.place, ())
    numbered = bool(weights) and all(key.isdecimal() for key in weights)
    weights = {f"weight_{key}" if numbered else key: shape for key, shape in weights.items()}
    options = {
        key: value
        for key, value in first.config.items()
        if has_effect(first.class_name, key) and key not in EVERY_LAYER and key not in weights
    }
    attributes = attribute_names([*weights, *options])
    places = ", ".join(printable(layer.place) for layer in layers[:5])
    does = "one step of" if cell else "call() of"
    shape = facts.inputs.get(first.place)
    lines = [
        f"class {name}(nn.Module):",
        f"    # In the file: {places}{', ...' if len(layers) > 5 else ''}",
        "    def __init__(self, layer: k2t.LayerSpec) -> None:",
        "        super().__init__()",
    ]
    for key, value in options.items():
        code = f"self.{attributes[key]} = layer.config[{_literal(key)}]"
        lines += _commented(code, _shown(value))
    for key, size in weights.items():
        given = f"nn.Parameter(torch.tensor(layer.weights[{_literal(key)}]))"
        lines += _commented(f"self.{attributes[key]} = {given}", str(size))
    lines += [
        "",
        *(_CELL_FORWARD if cell else _FORWARD),
        *([f"        # x: {printable(str(shape), _OPTION_WIDTH)}"] if shape else []),
        f"        raise NotImplementedError({_literal(printable(f'{does} {first.class_name}'))})",
        "",
        "",
        *_comments(numbered=numbered, listed=listed, cell=cell),
    ]
    arguments = [_literal(first.class_name)]
    if cell:
        option = _size_option(first.config)
        arguments.append(f"state_size={option if isinstance(option, int) else _literal(option)}")
    return [
        *lines,
        *_called("@k2t.converts", arguments, list(map(_literal, weights))),
        f"def {_name_function('build', snake_case(name))}(layer: k2t.LayerSpec) -> nn.Module:",
        f"    return {name}(layer)",
    ]


def _commented(code: str, comment: str) -> list[str]:
    """Return a line of ``__init__`` with a comment behind it, or before it where it is too long."""
    line = f"        {code}  # {comment}"
    return [line] if len(line) <= _WIDTH else [f"        # {comment}", f"        {code}"]


def _called(function: str, arguments: Sequence[str], weights: Sequence[str]) -> list[str]:
    """Return a call as formatters lay it out: in one line, in one inside of it, or in many.

    weights: what the argument of this name lists; none if it is empty.
    """
    names = ", ".join(weights) + "," * (len(weights) == 1)
    given = ", ".join([*arguments, *([f"weights=({names})"] if weights else [])])
    if len(line := f"{function}({given})") <= _WIDTH:
        return [line]
    if len(inside := f"    {given}") <= _WIDTH:
        return [f"{function}(", inside, ")"]
    lines = [f"    {one}," for one in arguments]
    if weights and len(listed := f"    weights=({names}),") <= _WIDTH:
        lines.append(listed)
    elif weights:
        lines += ["    weights=(", *(f"        {name}," for name in weights), "    ),"]
    return [f"{function}(", *lines, ")"]


def _comments(*, numbered: bool, listed: Sequence[str], cell: bool) -> list[str]:
    """Return what the author has to decide, as comments above the decorator."""
    lines = []
    if cell:
        lines.append(
            "# state_size=: as cell.state_size in Keras; forward returns y and the states."
        )
    else:
        lines.append('# Where a mask reaches the layer: mask="uses", "uses and passes", ...')
    if numbered:
        lines.append("# The file only numbers the weights, in the order of Keras: rename them.")
    if listed:
        lines.append("# Name its weights in weights=, in Keras' order. The file has near it:")
        lines += [f"#     {printable(name)}" for name in listed]
    return lines


def _shown(value: Any) -> str:
    """Return a value of the file for a comment."""
    return printable(json.dumps(value), _OPTION_WIDTH)


def _literal(text: str) -> str:
    """Return a Python literal of a text, in ASCII."""
    return f'"{text}"' if re.fullmatch(r"[\w>/.() -]*", text, re.ASCII) else ascii(text)
