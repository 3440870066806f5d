"""The body of ``forward``: the straight-line graph of the converted model as statements."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Tensor, fx

from keras2torch_birnn.errors import (
    K2TError,
    UnsupportedLayerError,
    UnsupportedOptionError,
    printable,
)
from keras2torch_birnn.exporting.source.code import (
    Called,
    Emission,
    Expression,
    Helper,
    Site,
    Statement,
    Value,
    code,
    member,
    symbol,
    used_names,
)
from keras2torch_birnn.exporting.source.functions import COMPARISONS, spell, spell_method
from keras2torch_birnn.exporting.source.names import LocalNames, local_beside, show_shape
from keras2torch_birnn.layers.core import INPUT_CASTS, differs, not_zero
from keras2torch_birnn.layers.merging import all_masks, any_mask, concatenated_mask
from keras2torch_birnn.layers.operations import SEVERAL, GraphConstant
from keras2torch_birnn.layers.recurrent import fold_steps, step_counts, unfold_steps
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


# Module -> its attribute, its layer, and that layer's text
Layers: TypeAlias = Mapping[str, tuple[str, LayerSpec, Emission]]


class BodyWriter:
    """Writer of the body of ``forward``.

    ``write`` fills ``statements``, ``result``, ``helpers`` of its functions, ``constants``
    (attribute -> its tensor, a number or an array of the file's graph), and ``problems``: what has
    no source form.

    arguments: of ``forward``. taken: names that no local variable may have. double: floats are of
    float64. floats: which inputs are declared as floats.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        layers: Layers,
        arguments: Sequence[str],
        taken: set[str],
        *,
        double: bool,
        floats: Sequence[bool],
    ) -> None:
        self.module, self.layers, self.arguments = module, layers, arguments
        self.nodes = ordered_nodes(module)
        self.names = LocalNames(self.nodes, taken, self.is_alias)
        self.float = symbol("double" if double else "float")
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        pairs = zip(inputs, floats, strict=True)
        self.float_inputs = {node for node, is_float in pairs if is_float}
        self.statements: list[Statement] = []
        self.result: Value = None
        self.helpers: list[Helper] = []
        self.constants: dict[str, Tensor] = {}
        self.problems: list[K2TError] = []
        self.values: dict[fx.Node, Value] = {}
        self.plain: set[fx.Node] = set()  # whose values are sizes
        self.masks: set[fx.Node] = set()
        self.typed: set[str] = set()  # local names that have a type already
        self.states: set[Expression] = set()  # names of outputs behind a layer's first

    # ---- values ----

    def is_alias(self, node: fx.Node) -> bool:
        """Tell whether a node has the value of its argument, or a part of it, by the same name."""
        if node.op == "call_module":
            target = str(node.target)
            return target in self.layers and self.layers[target][2].same
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
        self.constants[attribute] = constant.values
        self.values[node] = member(attribute)
        return self.values[node]

    # ---- nodes ----

    def write(self) -> None:
        """Write the whole graph."""
        given = iter(self.arguments)
        for node in self.nodes:
            self.names.go_to(node)
            try:
                if node.op == "placeholder":
                    local = next(given)
                    self.names.keep(local, node)
                    self.typed.add(local)
                    self.values[node] = symbol(local)
                elif node.op == "output":
                    self.result = self.value(node.args[0])
                elif node.op == "call_module":
                    self.call_module(node)
                elif node.op in ("call_function", "call_method"):
                    self.call_function(node)
                else:
                    raise UnsupportedLayerError(f"a node {node.op} of the graph")
            except K2TError as problem:
                self.problems.append(problem)
                self.values[node] = _REFUSED
        self.statements = _drop_unread(self.statements, self.result, self.states)

    def call_module(self, node: fx.Node) -> None:
        """Write the call of a layer."""
        target = str(node.target)
        if isinstance(self.module.get_submodule(target), GraphConstant):
            return
        if target not in self.layers:  # refused already
            self.values[node] = _REFUSED
            return
        attribute, layer, emission = self.layers[target]
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
        local = self.names.give(node, "x", local_beside(attribute, target))
        declared = local in self.typed
        out = symbol(local)
        site = Site(args, mask, kwargs, out, lambda one: symbol(self.names.fresh(one)), declared)
        called = emission.call(site)
        comment = _shape_comment(layer, folded=node.name in self.module.meta["folded"])
        if isinstance(called, Called):
            shown = _find_output(called)
            self.statements += [
                replace(line, comment=comment if number == shown else "")
                for number, line in enumerate(called.statements)
            ]
            self.values[node] = called.values
            if isinstance(called.values, tuple):
                self.states |= set(called.values[1:])
                for extra in called.values:
                    self.names.keep(extra.text, node)
            return
        self.statements.append(Statement(out, called, not declared, comment))
        self.typed.add(local)
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
            self.helpers += helpers
        if self.is_plain(node):
            self.assign(node, called, "")
        else:
            self.assign(node, called, "mask" if self.is_mask(node) else "x")

    def mask_of(self, mask: Any) -> Value:
        """Write the mask that a layer is called with; an input of the model may be integers."""
        value = self.value(mask)
        if isinstance(mask, fx.Node) and not (self.is_mask(mask) or mask.target in COMPARISONS):
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
        self.statements.append(Statement(symbol(local), expression))
        self.typed.add(local)


def _drop_unread(
    statements: Sequence[Statement], result: Value, states: set[Expression]
) -> list[Statement]:
    """Return the statements but those that give a name to a state that nobody reads."""
    read = used_names(result)
    found: list[Statement] = []
    comment = ""
    for one in reversed(statements):
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


# ---- nodes in the order in which they are written ----


def without_steps_around(module: fx.GraphModule) -> fx.GraphModule:
    """Take the steps around layers' modules out of a graph: a layer's text has them."""
    for node in list(module.graph.nodes):
        if node.name in module.meta["around"]:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    return module


def ordered_nodes(module: fx.GraphModule) -> list[fx.Node]:
    """Return the nodes to write, masks before the layers that take them."""
    return _masks_first(_live_nodes(list(module.graph.nodes)))


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


def names_of_functions(module: fx.GraphModule) -> set[str]:
    """Return the names of all functions of a graph, which no local variable may have."""
    functions = (node.target for node in module.graph.nodes if node.op == "call_function")
    return {getattr(function, "__name__", "") for function in functions}
