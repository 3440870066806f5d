"""The body of ``forward``: the straight-line graph of the converted model as statements."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx

from keras2torch_birnn.errors import (
    K2TError,
    UnsupportedLayerError,
    UnsupportedOptionError,
    printable,
)
from keras2torch_birnn.exporting.source.code import (
    Expression,
    Statement,
    code,
    member,
    symbol,
    used_names,
)
from keras2torch_birnn.exporting.source.emission import Called, Emission, Helper, Site, Value
from keras2torch_birnn.exporting.source.graph_nodes import ordered_nodes
from keras2torch_birnn.exporting.source.local_names import LocalNames
from keras2torch_birnn.exporting.source.names import local_beside, show_shape
from keras2torch_birnn.exporting.source.operations import spell, spell_method
from keras2torch_birnn.layers.embedding import not_zero
from keras2torch_birnn.layers.input_casts import INPUT_CASTS
from keras2torch_birnn.layers.masking import differs
from keras2torch_birnn.layers.merging import all_masks, any_mask, concatenated_mask
from keras2torch_birnn.layers.operations import SEVERAL, GraphConstant
from keras2torch_birnn.layers.time_distributed import fold_steps, step_counts, unfold_steps
from keras2torch_birnn.spec import LayerSpec

_MASKS = frozenset({not_zero, differs, all_masks, any_mask, concatenated_mask, step_counts})
# Of a mask these give a mask; other results have these names.
_MOVES: Mapping[Any, str] = {fold_steps: "folded", unfold_steps: "unfolded"}
_CASTS: Mapping[Any, Expression] = {
    INPUT_CASTS["int32"]: symbol("long"),
    INPUT_CASTS["bool"]: symbol("bool"),
    INPUT_CASTS["ids"]: symbol("long"),
}
_TO_FLOAT = INPUT_CASTS["float"]
_SEVERAL = tuple(SEVERAL.values())


_REFUSED = symbol("refused")  # in the place of a value that cannot be written


@dataclass
class Body:
    """Statements of ``forward``, its arguments and results, the helpers of its functions.

    constants: attribute -> its tensor, a number or an array of the file's graph.
    """

    arguments: list[str] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    result: Value = None
    helpers: list[Helper] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)
    typed: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Layers:
    """The layers of a model by the names of their modules, and their source text.

    attributes: module -> attribute.
    """

    specs: Mapping[str, LayerSpec]
    emissions: Mapping[str, Emission]
    attributes: Mapping[str, str]


class BodyWriter:
    """Writer of the body of ``forward``; ``problems``: what has no source form.

    taken: names that no local variable may have. double: floats are of float64. floats: which
    inputs are declared as floats.
    """

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
        self.values: dict[fx.Node, Value] = {}
        self.plain: set[fx.Node] = set()  # whose values are sizes
        self.masks: set[fx.Node] = set()
        self.float = symbol("double" if double else "float")
        self.body = Body()
        self.problems: list[K2TError] = []
        self.float_inputs: set[Any] = set()
        self.floats = floats
        self.states: set[Expression] = set()  # names of outputs behind a layer's first

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

    def value(self, argument: Any) -> Value:
        """Return an argument with expressions in the place of nodes; the rest are plain values."""
        if isinstance(argument, fx.Node):
            return self.lazy(argument) if argument not in self.values else self.values[argument]
        if isinstance(argument, Mapping):
            return {key: self.value(one) for key, one in argument.items()}
        if isinstance(argument, tuple | list):
            return tuple(self.value(one) for one in argument)
        if isinstance(argument, slice):
            return slice(*(self.value(p) for p in (argument.start, argument.stop, argument.step)))
        plain: object = argument
        return plain

    def lazy(self, node: fx.Node) -> Value:
        """Return a constant, which becomes a buffer when it is first used."""
        constant = self.module.get_submodule(str(node.target))
        if not isinstance(constant, GraphConstant):
            raise UnsupportedLayerError(f"{node.target} is used before it is computed")
        attribute = str(node.target).replace(".", "_")
        self.body.constants[attribute] = constant.values
        self.values[node] = member(attribute)
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
                    local = next(given)
                    self.names.keep(local, node)
                    self.body.arguments.append(local)
                    self.body.typed.add(local)
                    self.values[node] = symbol(local)
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
                self.values[node] = _REFUSED
        self.body.statements = _without(self.body, self.states)
        return self.body

    def call_module(self, node: fx.Node) -> None:
        """Write the call of a layer."""
        target = str(node.target)
        if isinstance(self.module.get_submodule(target), GraphConstant):
            return
        if target not in self.layers.emissions:  # refused already
            self.values[node] = _REFUSED
            return
        layer, emission = self.layers.specs[target], self.layers.emissions[target]
        args = tuple(self.value(one) for one in node.args)
        kwargs = {key: self.value(one) for key, one in node.kwargs.items() if key != "mask"}
        mask = self.mask_of(node.kwargs.get("mask"))
        if unknown := kwargs.keys() - emission.options:
            raise UnsupportedOptionError(
                f"{printable(layer.class_name)} is called with "
                f"{', '.join(map(printable, sorted(unknown)))}, which has no form in plain "
                "PyTorch source",
                place=layer.place,
            )
        if emission.same:
            self.values[node] = args[0]
            return
        attribute = self.layers.attributes[target]
        local = self.names.give(node, "x", local_beside(attribute, target))
        declared = local in self.body.typed
        out = symbol(local)
        site = Site(
            attribute, args, mask, kwargs, out, lambda one: symbol(self.names.fresh(one)), declared
        )
        called = emission.call(site)
        comment = _shape_comment(layer, folded=node.name in self.module.meta["folded"])
        if isinstance(called, Called):
            shown = _find_output(called)
            self.body.statements += [
                replace(line, comment=comment if number == shown else "")
                for number, line in enumerate(called.statements)
            ]
            self.values[node] = called.values
            if isinstance(called.values, tuple):
                self.states |= set(called.values[1:])
                for extra in called.values:
                    self.names.keep(extra.text, node)
            return
        self.body.statements.append(Statement(out, called, not declared, comment))
        self.body.typed.add(local)
        self.values[node] = out

    def call_function(self, node: fx.Node) -> None:
        """Write the call of a function or a method."""
        whole = self.value(node.args[0]) if self.is_alias(node) else None
        if whole is not None and node.target is _TO_FLOAT:
            self.values[node] = whole
            return
        if isinstance(whole, tuple):
            self.values[node] = whole[int(str(node.args[1]))]
            return
        cast = self.float if node.target in (_TO_FLOAT, "type_as") else _CASTS.get(node.target)
        if cast is not None:
            self.assign(node, code("{}.{}()", self.value(node.args[0]), cast), "x")
            return
        args = tuple(self.value(one) for one in node.args)
        kwargs = {key: self.value(one) for key, one in node.kwargs.items()}
        if node.op == "call_method":
            called = spell_method(str(node.target), args, kwargs)
        else:
            called, helpers = spell(node.target, args, kwargs)
            self.body.helpers += helpers
        if self.is_plain(node):
            self.assign(node, called, "")
        else:
            self.assign(node, called, "mask" if self.is_mask(node) else "x")

    def mask_of(self, mask: Any) -> Value:
        """Write the mask that a layer is called with; an input of the model may be integers."""
        value = self.value(mask)
        if isinstance(mask, fx.Node) and not self.is_mask(mask):
            return code("{}.bool()", value)
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

    def assign(self, node: fx.Node, expression: Expression, wanted: str) -> None:
        """Assign an expression to the name of a node."""
        local = self.names.give(node, wanted, _MOVES.get(node.target, ""))
        self.values[node] = symbol(local)
        self.body.statements.append(Statement(symbol(local), expression))
        self.body.typed.add(local)


def _without(body: Body, states: set[Expression]) -> list[Statement]:
    """Return the statements but those that give a name to a state that nobody reads."""
    read = used_names(body.result)
    found: list[Statement] = []
    comment = ""
    for one in reversed(body.statements):
        if one.target in states and one.target.text not in read:
            comment = comment or one.comment
            continue
        read |= used_names(one.code)
        found.append(replace(one, comment=one.comment or comment))
        comment = ""
    return found[::-1]


def _find_output(called: Called) -> int:
    """Return the place of the statement that names the output, before those that name states."""
    output = called.values[0] if isinstance(called.values, tuple) else called.values
    targets = [line.target for line in called.statements]
    named = (target == output or target.text.startswith(f"{output.text}, ") for target in targets)
    places = [place for place, is_named in enumerate(named) if is_named]
    return places[-1] if places else len(targets) - 1


def _shape_comment(layer: LayerSpec, *, folded: bool) -> str:
    shape = layer.output_shape
    if isinstance(shape, tuple) and shape and isinstance(shape[0], tuple):
        shape = shape[0]
    return "" if folded else show_shape(shape)
