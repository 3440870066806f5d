"""The body of ``forward``: the straight-line graph of the converted model as statements."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from keras2torch_birnn.errors import K2TError, UnsupportedLayerError, printable
from keras2torch_birnn.exporting.source.emission import Called, Emission, Helper, Site
from keras2torch_birnn.exporting.source.names import local, local_beside, plain_text
from keras2torch_birnn.exporting.source.operations import Expression, spell, spell_method
from keras2torch_birnn.functional import movement, operations
from keras2torch_birnn.layers.embedding import not_zero
from keras2torch_birnn.layers.input_casts import INPUT_CASTS
from keras2torch_birnn.layers.masking import differs
from keras2torch_birnn.layers.merging import all_masks, any_mask, concatenated_mask
from keras2torch_birnn.layers.operations import Numbers
from keras2torch_birnn.layers.time_distributed import fold_steps, step_counts, unfold_steps
from keras2torch_birnn.spec import LayerSpec, Structure

_MASKS = frozenset({not_zero, differs, all_masks, any_mask, concatenated_mask, step_counts})
# Of a mask these give a mask; other results have these names.
_MOVES: Mapping[Any, str] = {fold_steps: "folded", unfold_steps: "unfolded"}
_CASTS = {INPUT_CASTS["int32"]: "long", INPUT_CASTS["bool"]: "bool", INPUT_CASTS["ids"]: "long"}
_TO_FLOAT = INPUT_CASTS["float"]
# Functions that return several tensors
_SEVERAL = (movement.split, movement.unstack, operations.top_k, operations.moments)


@dataclass(frozen=True)
class Statement:
    """One statement and the comment behind it."""

    text: str
    comment: str = ""


@dataclass
class Body:
    """Statements of ``forward``, its arguments and results, the helpers of its functions.

    constants: attribute -> its tensor, a number or an array of the file's graph.
    """

    arguments: list[str] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    result: Any = None
    helpers: list[Helper] = field(default_factory=list)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    typed: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Layers:
    """The layers of a model by the names of their modules, and their source text.

    attributes: module -> attribute.
    """

    specs: Mapping[str, LayerSpec]
    emissions: Mapping[str, Emission]
    attributes: Mapping[str, str]


class _Writer:
    def __init__(
        self,
        module: fx.GraphModule,
        layers: Layers,
        taken: set[str],
        *,
        double: bool,
        floats: Sequence[bool],
    ) -> None:
        self.module, self.layers = module, layers
        self.nodes = _masks_first(_live_nodes(list(module.graph.nodes)))
        self.place = {node: number for number, node in enumerate(self.nodes)}
        self.taken = taken
        self.values: dict[fx.Node, Any] = {}
        self.ends: dict[str, int] = {}  # local name -> the place of its last use
        self.plain: set[fx.Node] = set()  # whose values are sizes
        self.masks: set[fx.Node] = set()
        self.float = "double" if double else "float"
        self.body = Body()
        self.problems: list[K2TError] = []
        self.float_inputs: set[Any] = set()
        self.floats = floats
        self.now = 0

    # ---- names and values ----

    def last_use(self, node: fx.Node) -> int:
        """Return the place of the last node that reads this one, also through others."""
        found = self.place[node]
        for user in (one for one in node.users if one in self.place):
            found = max(found, self.place[user])
            if self.is_alias(user):
                found = max(found, self.last_use(user))
        return found

    def is_alias(self, node: fx.Node) -> bool:
        """Tell whether a node has the value of its argument, or a part of it, by the same name."""
        if node.op == "call_module":
            emission = self.layers.emissions.get(str(node.target))
            return emission is not None and emission.same
        if node.op != "call_function":
            return False
        if node.target is _TO_FLOAT:
            return node.args[0] in self.float_inputs
        return node.target is operator.getitem and isinstance(node.args[1], int)

    def is_free(self, name: str, at: int) -> bool:
        """Tell whether a local name is not in use from a place on."""
        return name not in self.taken and self.ends.get(name, -1) <= at

    def give_name(self, node: fx.Node, wanted: str, other: str = "") -> str:
        """Return the local name of a node's value: ``wanted`` where that is free, else another."""
        other = other or local(node.name)
        name = self.number(wanted or other, self.now, other)
        self.ends[name] = self.last_use(node)
        return name

    def fresh(self, wanted: str) -> str:
        """Return a local name for use within the statements of the current node."""
        name = self.number(wanted, self.now - 1, wanted)
        self.ends[name] = self.now
        return name

    def number(self, wanted: str, at: int, other: str) -> str:
        """Return ``wanted`` if it is free, else ``other``, with a number if that is not."""
        if self.is_free(wanted, at):
            return wanted
        name, number = other, 1
        while not self.is_free(name, at):
            number += 1
            name = f"{other}_{number}"
        return name

    def value(self, argument: Any) -> Any:
        """Return an argument with expressions in the place of nodes."""
        if isinstance(argument, fx.Node):
            return self.lazy(argument) if argument not in self.values else self.values[argument]
        if isinstance(argument, Mapping):
            return {key: self.value(one) for key, one in argument.items()}
        if isinstance(argument, tuple | list):
            return tuple(self.value(one) for one in argument)
        if isinstance(argument, slice):
            return slice(*(self.value(p) for p in (argument.start, argument.stop, argument.step)))
        return argument

    def lazy(self, node: fx.Node) -> Any:
        """Return a constant, which becomes a buffer when it is first used."""
        numbers = self.module.get_submodule(str(node.target))
        if not isinstance(numbers, Numbers):
            raise UnsupportedLayerError(f"{node.target} is used before it is computed")
        attribute = str(node.target).replace(".", "_")
        self.body.constants[attribute] = numbers.values
        self.values[node] = f"self.{attribute}"
        return self.values[node]

    # ---- nodes ----

    def write(self, inputs: Sequence[str]) -> Body:
        """Write the whole graph; ``inputs``: the names of the arguments."""
        given = iter(inputs)
        placeholders = [node for node in self.nodes if node.op == "placeholder"]
        pairs = zip(placeholders, self.floats, strict=True)
        self.float_inputs = {node for node, is_float in pairs if is_float}
        for node in self.nodes:
            self.now = self.place[node]
            try:
                if node.op == "placeholder":
                    name = next(given)
                    self.ends[name] = self.last_use(node)
                    self.body.arguments.append(name)
                    self.body.typed.add(name)
                    self.values[node] = name
                elif node.op == "output":
                    self.body.result = self.value(node.args[0])
                elif node.op == "call_module":
                    self.call_module(node)
                elif node.op in ("call_function", "call_method"):
                    self.call_function(node)
                else:
                    raise UnsupportedLayerError(f"a node {node.op} of the graph")
            except K2TError as problem:
                self.problems.append(problem)
                self.values[node] = "refused"
        return self.body

    def say(self, text: str, comment: str = "") -> None:
        """Add a statement."""
        self.body.statements.append(Statement(text, comment))

    def call_module(self, node: fx.Node) -> None:
        """Write the call of a layer."""
        target = str(node.target)
        if isinstance(self.module.get_submodule(target), Numbers):
            return
        if target not in self.layers.emissions:  # refused already
            self.values[node] = "refused"
            return
        layer, emission = self.layers.specs[target], self.layers.emissions[target]
        args = tuple(self.value(one) for one in node.args)
        kwargs = {key: self.value(one) for key, one in node.kwargs.items()}
        mask = kwargs.pop("mask", None)
        if emission.same:
            self.values[node] = args[0]
            return
        attribute = self.layers.attributes[target]
        name = self.give_name(node, "x", local_beside(attribute, target))
        declared = name in self.body.typed
        site = Site(attribute, args, mask, kwargs, name, self.fresh, declared)
        called = emission.call(site)
        comment = _shape_comment(layer, folded=node.name in self.module.meta["folded"])
        if isinstance(called, Called):
            for line in called.statements[:-1]:
                self.say(line)
            self.say(called.statements[-1], comment)
            self.values[node] = called.values
            if isinstance(called.values, tuple):
                for extra in called.values:
                    self.ends[extra] = self.last_use(node)
            return
        self.say(f"{name}{'' if declared else ': Tensor'} = {called}", comment)
        self.body.typed.add(name)
        self.values[node] = name

    def call_function(self, node: fx.Node) -> None:
        """Write the call of a function or a method."""
        if node.target is _TO_FLOAT:
            x = self.value(node.args[0])
            if self.is_alias(node):
                self.values[node] = x
            else:
                self.assign(node, f"{x}.{self.float}()", "x")
            return
        if node.target in _CASTS:
            self.assign(node, f"{self.value(node.args[0])}.{_CASTS[node.target]}()", "x")
            return
        if node.op == "call_method" and node.target == "type_as":
            self.assign(node, f"{self.value(node.args[0])}.{self.float}()", "x")
            return
        if self.is_alias(node):
            whole = self.value(node.args[0])
            if isinstance(whole, tuple):
                self.values[node] = whole[int(str(node.args[1]))]
                return
        if node.op == "call_method":
            text = spell_method(str(node.target), self.mixed(node), self.mixed_kwargs(node))
        else:
            spelled = spell(node.target, self.mixed(node), self.mixed_kwargs(node))
            if spelled is None:
                name = printable(getattr(node.target, "__name__", "?"))
                raise UnsupportedLayerError(f"{name} has no form in plain PyTorch source yet")
            text, helpers = spelled
            self.body.helpers += helpers
        if self.is_plain(node):
            self.assign(node, text, "")
        else:
            self.assign(node, text, "mask" if self.is_mask(node) else "x")

    def is_mask(self, node: fx.Node) -> bool:
        """Tell whether a node's value is a mask."""
        moves = node.target in _MOVES and node.args[0] in self.masks
        if moves or node.target in _MASKS:
            self.masks.add(node)
        return node in self.masks

    def is_plain(self, node: fx.Node) -> bool:
        """Tell whether a node's value is no tensor: sizes, or several tensors."""
        sizes = node.op == "call_method" and node.target in ("numel", "dim", "size")
        known = [one for one in node.all_input_nodes if one.op != "placeholder"]
        computed = (
            bool(known)
            and len(known) == len(node.all_input_nodes)
            and all(one in self.plain for one in known)
        )
        if sizes or computed or node.target is getattr or node.target in _SEVERAL:
            if node.target not in _SEVERAL:
                self.plain.add(node)
            return True
        return False

    def mixed(self, node: fx.Node) -> tuple[Any, ...]:
        """Return the arguments of a function: expressions for nodes, plain values as they are."""
        return tuple(self.mix(one) for one in node.args)

    def mixed_kwargs(self, node: fx.Node) -> dict[str, Any]:
        """Return the keyword arguments of a function likewise."""
        return {key: self.mix(one) for key, one in node.kwargs.items()}

    def mix(self, argument: Any) -> Any:
        """Replace the nodes in an argument by expressions."""
        if isinstance(argument, fx.Node):
            return _expressions(self.value(argument))
        if isinstance(argument, tuple | list):
            return tuple(self.mix(one) for one in argument)
        if isinstance(argument, slice):
            return slice(*(self.mix(p) for p in (argument.start, argument.stop, argument.step)))
        return argument

    def assign(self, node: fx.Node, text: str, wanted: str) -> None:
        """Assign an expression to the name of a node."""
        name = self.give_name(node, wanted, _MOVES.get(node.target, ""))
        self.say(f"{name} = {text}")
        self.values[node] = name


def _live_nodes(nodes: list[fx.Node]) -> list[fx.Node]:
    """Leave out functions whose results nothing reads, such as masks that go nowhere."""
    live: list[fx.Node] = []
    kept: set[fx.Node] = set()
    for node in reversed(nodes):
        computes = node.op in ("call_function", "call_method")
        if not computes or any(user in kept for user in node.users):
            kept.add(node)
            live.append(node)
    return live[::-1]


def names_of_functions(module: fx.GraphModule) -> set[str]:
    """Return the names of all functions of a graph, which no local variable may have."""
    functions = (node.target for node in module.graph.nodes if node.op == "call_function")
    return {getattr(function, "__name__", "") for function in functions}


def _masks_first(nodes: list[fx.Node]) -> list[fx.Node]:
    """Put what makes a mask of a layer's input before the layer, so that both can be called x."""
    out: list[fx.Node] = []
    for node in nodes:
        makes = node.op == "call_function" and node.target in (not_zero, differs)
        before = out[-1] if out else node
        if makes and before.op == "call_module" and node.args[0] in before.args:
            out.insert(-1, node)
        else:
            out.append(node)
    return out


def _expressions(value: Any) -> Any:
    if isinstance(value, str):
        return Expression(value)
    return tuple(_expressions(one) for one in value) if isinstance(value, tuple) else value


def write_body(
    module: fx.GraphModule,
    layers: Layers,
    inputs: Sequence[str],
    taken: set[str],
    *,
    double: bool,
    floats: Sequence[bool],
) -> tuple[Body, list[K2TError]]:
    """Write the body of ``forward``; return it and what has no source form.

    inputs: names of the arguments; taken: names that no local variable may have; double: floats
    are of float64; floats: which inputs are declared as floats.
    """
    writer = _Writer(module, layers, taken, double=double, floats=floats)
    body = writer.write(inputs)
    return body, writer.problems


def _shape_comment(layer: LayerSpec, *, folded: bool) -> str:
    shape = layer.output_shape
    if isinstance(shape, tuple) and shape and isinstance(shape[0], tuple):
        shape = shape[0]
    return "" if folded else show_shape(shape)


def show_shape(shape: Structure) -> str:
    """Write a shape with letters for the sizes that are free; empty if it is unknown."""
    if not isinstance(shape, tuple) or any(isinstance(size, tuple) for size in shape):
        return ""
    letters = ("B", "T", "?", "?", "?", "?")
    sizes = [
        letters[min(axis, 5)] if size is None or axis == 0 else str(int(size))
        for axis, size in enumerate(shape)
    ]
    return plain_text(f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})")
