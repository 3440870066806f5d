"""Write the beginning of a plugin for the classes of a file that have no converter.

Text of the file reaches it as checked identifiers, as literals, or as printable comments only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras2torch_birnn.errors import UsageError, gather, printable
from keras2torch_birnn.layers.model_graph import attribute_names
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers.config.custom_layers import EVERY_LAYER
from keras2torch_birnn.readers.config.generations import has_effect
from keras2torch_birnn.readers.config.parsing import UnknownClass
from keras2torch_birnn.readers.containers import opened
from keras2torch_birnn.readers.containers.container import ModelSource
from keras2torch_birnn.readers.steps import PathLike, parse
from keras2torch_birnn.readers.weights.v3 import snake_case
from keras2torch_birnn.schema.custom_layers import python_name

_OWN_NAMES = ("torch", "nn", "k2t")  # that the text itself uses
_WIDTH = 88  # of a line, as formatters have it by default

_HEAD = """\
# Layers of {source} that k2t has no converter for.
# Compute in each forward what call() of the Keras class computes. The arguments of the
# decorators: docs/plugins.md.

import keras2torch_birnn as k2t
import torch
"""
_LAMBDA = """\
{arguments}@k2t.supplies({place})
def {name}(x: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError({task})
"""
_CLASS = """\
class {name}(nn.Module):
    # In the file: {places}
    def __init__(self, layer: k2t.LayerSpec) -> None:
        super().__init__()
{attributes}
    def forward({forward}:
        raise NotImplementedError({task})


{comments}@k2t.converts(
    {class_name},
{arguments})
def {build}(layer: k2t.LayerSpec) -> nn.Module:
    return {name}(layer)
"""
_FORWARD = "self, x: torch.Tensor) -> torch.Tensor"
_CELL_FORWARD = """
        self, x: torch.Tensor, states: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]"""


@dataclass(frozen=True)
class PluginText:
    """The text of a plugin, the classes and Lambdas in it, and notes for its author."""

    text: str
    names: tuple[str, ...]
    notes: tuple[str, ...]


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
        names = tuple(container.weight_names())
    places = {one.place for one in unknown}
    others = [problem for problem in reading.problems if problem.place not in places]
    notes = [f"also not supported: {line}" for line in (gather(others).lines() if others else ())]
    lambdas = {one.place: one for one in unknown if one.kind == "Lambda"}
    classes: dict[str, list[UnknownClass]] = {}
    for one in unknown:
        if one.place not in lambdas:
            classes.setdefault(one.class_name, []).append(one)
    short: dict[str, str] = {}  # without the package, if that is unique
    for name in classes:
        short[name] = name if python_name(name) in short.values() else python_name(name)
    called = attribute_names([*_OWN_NAMES, *short.values()])
    head = _HEAD.format(source=printable(container.source.name))
    stubs = [_class_stub(called[short[name]], layers, names) for name, layers in classes.items()]
    stubs += [_lambda_stub(layer) for layer in lambdas.values()]
    text = "\n\n".join((head + "from torch import nn\n" * bool(classes), *stubs))
    return PluginText(text, (*classes, *lambdas), tuple(notes))


def _name_function(verb: str, name: str) -> str:
    return re.sub(r"\W", "_", f"{verb}_{name}", flags=re.ASCII)


def _lambda_stub(layer: UnknownClass) -> str:
    stated = layer.config.get("arguments")
    given = dict(stated) if isinstance(stated, Mapping) else {}
    given.pop("mask", None)  # Keras 2 leaves the last call's there
    return _LAMBDA.format(
        arguments=f"# Its arguments, by name: {_shown(given)}\n" if given else "",
        place=_literal(layer.place),
        name=_name_function("compute", layer.place),
        task=_literal(printable(f"what the Lambda {layer.place} computes")),
    )


def _class_stub(name: str, layers: Sequence[UnknownClass], names: Sequence[str]) -> str:
    """Write a module class with options and weights as the file has them.

    layers: those of the class; the first one is the example. names: of all weights in the file.
    """
    first, cell = layers[0], layers[0].kind == "cell"
    weights, near = _find_weights(first, names)
    options = {
        key: value
        for key, value in first.config.items()
        if has_effect(first.class_name, key) and key not in EVERY_LAYER and key not in weights
    }
    called = attribute_names([*weights, *options])
    lines: list[str] = []
    for key, value in options.items():
        lines += [f"# {_shown(value)}", f"self.{called[key]} = layer.config[{_literal(key)}]"]
    for key in weights:
        value = f"torch.tensor(layer.weights[{_literal(key)}])"
        line = f"self.{called[key]} = nn.Parameter({value})"
        if len(line) > _WIDTH - 8:
            line = f"self.{called[key]} = nn.Parameter(\n            {value}\n        )"
        lines.append(line)
    comments = ['# Where a mask reaches the layer: mask="uses", "uses and passes", ...']
    arguments: list[str] = []
    if cell:
        sizes = [key for key, value in options.items() if type(value) is int and value > 0]
        likeliest = min(sizes, key=lambda key: key not in ("units", "state_size"), default="")
        arguments = [f"state_size={_literal(likeliest) if likeliest else 1},"]
        comments = ["# state_size=: as cell.state_size in Keras; forward returns y and the states."]
    if near:
        comments += ["# weights=: all, in Keras' order. The file has near the layer:"]
        comments += [f"#     {printable(one)}" for one in near]
    if weights:  # (a comma at the end keeps formatters from joining the lines)
        arguments += ["weights=(", *(f"    {_literal(one)}," for one in weights), "),"]
    places = [printable(layer.place) for layer in layers[:5]]
    return _CLASS.format(
        name=name,
        places=", ".join([*places, *(["..."] if len(layers) > 5 else [])]),
        attributes="".join(f"        {line}\n" for line in lines),
        forward=_CELL_FORWARD if cell else _FORWARD,
        task=_literal(printable(f"{'one step of' if cell else 'call() of'} {first.class_name}")),
        comments="".join(f"{line}\n" for line in comments),
        class_name=_literal(first.class_name),
        arguments="".join(f"    {line}\n" for line in arguments),
        build=_name_function("build", snake_case(name)),
    )


def _find_weights(layer: UnknownClass, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return names for the layer's weights, as ``weights=`` takes them, and those of the file.

    They have the layer or its class in them; of a layer that no name has, what holds it is listed.
    """
    *outer, own = layer.place.split("/")
    for words in ({own, snake_case(layer.class_name)}, *({one} for one in reversed(outer))):
        near = [name for name in names if words & {*name.split("/")}]
        if near:
            found = [_inside(name.split("/"), words) for name in near]
            sure = own in words and len({*found}) == len(found)
            return (found if sure else []), near
    return [], []


def _inside(parts: Sequence[str], words: set[str]) -> str:
    """Return what follows the layer in a weight's name; "weight_0" for a number."""
    at = max(number for number, part in enumerate(parts) if part in words)
    *path, last = [part for part in parts[at + 1 :] if part != "vars"] or parts[-1:]
    last = last.removeprefix(f"{parts[at]}_")
    return "/".join([*path, f"weight_{last}" if last.isdecimal() else last])


def _shown(value: Any) -> str:
    """Return a value of the file for a comment."""
    return printable(json.dumps(value), 60)


def _literal(text: str) -> str:
    """Return a Python literal of a text, in ASCII."""
    return f'"{text}"' if re.fullmatch(r"[\w>/.() -]*", text, re.ASCII) else ascii(text)
