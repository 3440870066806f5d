"""The body of ``forward``: the straight-line graph of the converted model as statements."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from keras2torch_birnn.errors import K2TError, UnsupportedLayerError, printable
from keras2torch_birnn.exporting.source.body import Body, Layers, Statement
from keras2torch_birnn.exporting.source.emission import Called, Site
from keras2torch_birnn.exporting.source.graph_nodes import ordered_nodes
from keras2torch_birnn.exporting.source.local_names import LocalNames
from keras2torch_birnn.exporting.source.names import local_beside, show_shape
from keras2torch_birnn.exporting.source.operations import Expression, spell, spell_method
from keras2torch_birnn.functional import movement, operations
from keras2torch_birnn.layers.embedding import not_zero
from keras2torch_birnn.layers.input_casts import INPUT_CASTS
from keras2torch_birnn.layers.masking import differs
from keras2torch_birnn.layers.merging import all_masks, any_mask, concatenated_mask
from keras2torch_birnn.layers.operations import Numbers
from keras2torch_birnn.layers.time_distributed import fold_steps, step_counts, unfold_steps
from keras2torch_birnn.spec import LayerSpec

_MASKS = frozenset({not_zero, differs, all_masks, any_mask, concatenated_mask, step_counts})
# Of a mask these give a mask; other results have these names.
_MOVES: Mapping[Any, str] = {fold_steps: "folded", unfold_steps: "unfolded"}
_CASTS = {INPUT_CASTS["int32"]: "long", INPUT_CASTS["bool"]: "bool", INPUT_CASTS["ids"]: "long"}
_TO_FLOAT = INPUT_CASTS["float"]
_NAME = re.compile(r"\w+")
# Functions that return several tensors
_SEVERAL = (movement.split, movement.unstack, operations.top_k, operations.moments)


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
        self.nodes = ordered_nodes(module)
        self.names = LocalNames(self.nodes, taken, self.is_alias)
        self.values: dict[fx.Node, Any] = {}
        self.plain: set[fx.Node] = set()  # whose values are sizes
        self.masks: set[fx.Node] = set()
        self.float = "double" if double else "float"
        self.body = Body()
        self.problems: list[K2TError] = []
        self.float_inputs: set[Any] = set()
        self.floats = floats
        self.states: set[str] = set()  # names of outputs behind a layer's first

    # ---- values ----

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
            self.names.go_to(node)
            try:
                if node.op == "placeholder":
                    name = next(given)
                    self.names.keep(name, node)
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
        self.body.statements = _without(self.body, self.states)
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
        kwargs = {key: self.value(one) for key, one in node.kwargs.items() if key != "mask"}
        mask = self.mask_of(node.kwargs.get("mask"))
        if emission.same:
            self.values[node] = args[0]
            return
        attribute = self.layers.attributes[target]
        name = self.names.give(node, "x", local_beside(attribute, target))
        declared = name in self.body.typed
        site = Site(attribute, args, mask, kwargs, name, self.names.fresh, declared)
        called = emission.call(site)
        comment = _shape_comment(layer, folded=node.name in self.module.meta["folded"])
        if isinstance(called, Called):
            shown = _find_output(called)
            for number, line in enumerate(called.statements):
                self.say(line, comment if number == shown else "")
            self.values[node] = called.values
            if isinstance(called.values, tuple):
                self.states |= set(called.values[1:])
                for extra in called.values:
                    self.names.keep(extra, node)
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

    def mask_of(self, given: Any) -> Any:
        """Write the mask that a layer is called with; an input of the model may be integers."""
        value = self.value(given)
        if isinstance(given, fx.Node) and not self.is_mask(given):
            return f"{value}.bool()"
        return value

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
        name = self.names.give(node, wanted, _MOVES.get(node.target, ""))
        self.say(f"{name} = {text}")
        self.body.typed.add(name)
        self.values[node] = name


def _expressions(value: Any) -> Any:
    if isinstance(value, str):
        return Expression(value)
    return tuple(_expressions(one) for one in value) if isinstance(value, tuple) else value


def _without(body: Body, states: set[str]) -> list[Statement]:
    """Return the statements but those that give a name to a state that nobody reads."""
    read = set(_NAME.findall(repr(body.result)))
    found: list[Statement] = []
    comment = ""
    for one in reversed(body.statements):
        target = one.text.partition(" = ")[0]
        if target in states - read:
            comment = comment or one.comment
            continue
        read |= set(_NAME.findall(one.text))
        found.append(replace(one, comment=one.comment or comment))
        comment = ""
    return found[::-1]


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


def _find_output(called: Called) -> int:
    """Return the place of the statement that names the output, before those that name states."""
    output = called.values[0] if isinstance(called.values, tuple) else called.values
    targets = [re.split(r"[:,]| = ", line, maxsplit=1)[0] for line in called.statements]
    places = [place for place, target in enumerate(targets) if target == output]
    return places[-1] if places else len(targets) - 1


def _shape_comment(layer: LayerSpec, *, folded: bool) -> str:
    shape = layer.output_shape
    if isinstance(shape, tuple) and shape and isinstance(shape[0], tuple):
        shape = shape[0]
    return "" if folded else show_shape(shape)
