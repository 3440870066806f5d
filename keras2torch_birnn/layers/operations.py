"""Operations as nodes of a model's code: ``y = torch.sum(x, dim = (1,), keepdim = False)``.

Which function each is, how its options are called there, and the conversions around it that
``semantics["kinds"]`` asks for. They hold no weights and are no modules.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.layers import functional
from keras2torch_birnn.rnn import activations
from keras2torch_birnn.schema import OPS
from keras2torch_birnn.schema.operations import Operation
from keras2torch_birnn.spec import Constant, LayerSpec, Structure, map_structure

_DTYPES: Mapping[str, torch.dtype] = {
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}
_LITERALS = ("a float", "an int", "a bool")


@dataclass(frozen=True)
class Target:
    """Function of an operation.

    ``names``: the names of options there -> options; other options keep their names. ``fixed``:
    more options. ``gives``: the kinds that come out of the function itself, where not those wanted.
    ``tensors``: it takes no plain numbers.
    """

    function: Callable[..., Any]
    names: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    gives: tuple[str, ...] = ()
    tensors: bool = False


def find_target(row: Operation) -> Target | None:
    """Return the function that a row names, or that has its name; None if it is a method."""
    form = row.form_of("torch", "operator", "functional")
    modules: Mapping[str, tuple[Any, ...]] = {
        "torch": (torch,),
        "operator": (operator,),
        "functional": (functional,),
        "": (functional, torch),
    }
    for module in modules[form.dialect]:
        if function := getattr(module, form.name, None):
            steps = {name: tuple(more) for name, *more in form.steps}
            return Target(
                function, form.parameters, form.fixed, steps.get("gives", ()), "tensors" in steps
            )
    return None


_TARGETS: Mapping[str, Target] = {
    row.op: target for row in OPS.values() if (target := find_target(row))
}
# The value is the argument's own, in another kind
_VALUES = ("Cast", "ConvertToTensor", "Identity")
# ... of two arguments that are one: the masks of what was added to its own input
_OF_EQUAL = ("LogicalAnd", "LogicalOr")
_OF_SIZES: Mapping[str, Callable[..., Any]] = {
    **{name: _TARGETS[name].function for name in ("Add", "Subtract", "Multiply", "FloorDivide")},
    **{name: _TARGETS[name].function for name in ("Maximum", "Minimum")},
    "Concatenate": functional.join_sizes,
    "Stack": functional.join_sizes,
    "Prod": math.prod,
}


class Spelled(NamedTuple):
    """A node of fx: its opcode, its target and its arguments."""

    form: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] | None = None


def _shape(config: Mapping[str, Any], sizes: tuple[Any, ...]) -> Any:
    """Return the sizes of a shape with the computed ones filled in, or one value of all sizes."""
    if config["shape"] is None:
        return sizes[0]
    free = iter(sizes)
    return tuple(next(free) if size is None else size for size in config["shape"])


def _reshape(config: Mapping[str, Any], x: Any, *sizes: Any) -> Spelled:
    shape = _shape(config, sizes)
    return Spelled("call_method", "reshape", (x, *shape) if type(shape) is tuple else (x, shape))


def _to_shape(function: Any, config: Mapping[str, Any], x: Any, *sizes: Any) -> Spelled:
    return Spelled("call_function", function, (x, _shape(config, sizes)))


def _full(config: Mapping[str, Any], like: Any, *sizes: Any) -> Spelled:
    dtype = {"dtype": _DTYPES[config["dtype"]]} if config["dtype"] in _DTYPES else {}
    return Spelled("call_method", "new_full", (like, _shape(config, sizes), config["value"]), dtype)


def _getitem(config: Mapping[str, Any], x: Any, *sizes: Any) -> Spelled:
    free = iter(sizes)

    def part(value: Any) -> Any:
        if value == "@":
            return next(free)
        if isinstance(value, tuple):
            return slice(*(next(free) if bound == "@" else bound for bound in value))
        return Ellipsis if value == "..." else value

    key = tuple(part(value) for value in config["key"])
    steps = [value[2] for value in config["key"] if isinstance(value, tuple)]
    if any(step == "@" or (step or 1) < 0 for step in steps):
        return Spelled("call_function", functional.getitem_backwards, (x, key))
    return Spelled("call_function", operator.getitem, (x, key[0] if len(key) == 1 else key))


def _squeeze(config: Mapping[str, Any], x: Any) -> Spelled:
    return Spelled("call_method", "squeeze", (x, *(config["axis"] or ())))


def _expand_dims(config: Mapping[str, Any], x: Any) -> Spelled:
    if len(config["axis"]) == 1:
        return Spelled("call_method", "unsqueeze", (x, *config["axis"]))
    return Spelled("call_function", functional.expand_dims, (x, config["axis"]))


def _transpose(config: Mapping[str, Any], x: Any) -> Spelled:
    if config["axes"] is None:
        return Spelled("call_function", functional.transpose, (x, None))
    return Spelled("call_method", "permute", (x, *config["axes"]))


def _flip(config: Mapping[str, Any], x: Any) -> Spelled:
    if config["axis"] is None:
        return Spelled("call_function", functional.flip, (x, None))
    return Spelled("call_method", "flip", (x, *config["axis"]))


_SPELLED: Mapping[str, Callable[..., Spelled]] = {
    "Reshape": _reshape,
    "BroadcastTo": partial(_to_shape, torch.broadcast_to),
    "Tile": partial(_to_shape, torch.tile),
    "Full": _full,
    "GetItem": _getitem,
    "Squeeze": _squeeze,
    "ExpandDims": _expand_dims,
    "Transpose": _transpose,
    "Flip": _flip,
}
# Operations that are written otherwise than as the call of a function, or not at all
NODES = frozenset({*_SPELLED, *_VALUES, "Activation", "Shape"})
# Functions that return several tensors
SEVERAL: Mapping[str, Callable[..., Any]] = {
    f"ops.{op}": _TARGETS[op].function for op in ("Split", "Unstack", "TopK")
}


def _dtype(want: str) -> dict[str, Any]:
    """Return the keywords of a new tensor beside a float of the model."""
    return {} if want == "float" else {"dtype": _DTYPES[want]}


class GraphConstant(nn.Module):
    """Constant of the file's graph as a buffer, so that it is on the model's device.

    A module, since fx would make a buffer of its own part of the state_dict.
    """

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values, persistent=False)

    def forward(self) -> Tensor:
        """Return the constant."""
        return self.values

    def extra_repr(self) -> str:
        """Show the shape and dtype."""
        return f"shape={tuple(self.values.shape)}, dtype={self.values.dtype}"


class ModelDtype(GraphConstant):
    """Zero of the model's dtype on its device, to which other tensors are brought."""

    def extra_repr(self) -> str:
        """Show the dtype."""
        return str(self.values.dtype)


def _are_one_node(arguments: Sequence[Any]) -> bool:
    first, second = arguments
    return first is second and isinstance(first, fx.Node)


class OperationNodes:
    """Writes operations into the fx graph of a model, whose constants become parts of ``root``.

    ``double``: the model's floats are of float64.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module, *, double: bool) -> None:
        self.graph, self.root = graph, root
        self.dtype = torch.float64 if double else torch.float32
        self._like: fx.Node | None = None

    def emit(
        self, layer: LayerSpec, args: tuple[Structure, ...], name: str, used: int
    ) -> tuple[fx.Node | Any, Structure]:
        """Write one call; return its node and its result, a tuple of ``used`` if several."""
        kinds, bare = layer.semantics["kinds"], layer.class_name.removeprefix("ops.")
        pairs = iter(zip(kinds["has"], kinds["wants"], strict=True))
        plain = bare in _TARGETS and bare not in NODES and not _TARGETS[bare].tensors
        arguments = map_structure(
            lambda leaf: self._argument(leaf, *next(pairs), name, tensors=not plain), args
        )
        gives = kinds["gives"]
        if gives == ("size",):
            return self._sizes(layer, bare, arguments, name, used)
        if bare in _VALUES or (bare in _OF_EQUAL and _are_one_node(arguments)):
            return (arguments[0] if arguments[0] is not args[0] else None), arguments[0]
        if bare in ("Full", "Arange"):
            arguments = (self.like(), *arguments)
        if bare in _SPELLED:
            spelled = _SPELLED[bare](layer.config, *arguments)
            return (self.graph.create_node(*spelled, name=name),) * 2
        function, options, natural = self._target(layer, bare)
        node = self.graph.create_node("call_function", function, arguments, options, name)
        if layer.class_name not in SEVERAL:
            out = self._cast(node, natural[0] if natural else gives[0], gives[0])
            return out, out
        several = []
        for i in range(used):
            part = self.graph.call_function(operator.getitem, (node, i))
            want = gives[min(i, len(gives) - 1)]
            came = natural[i] if i < len(natural) and natural[i] else want
            several.append(self._cast(part, came, want))
        return node, tuple(several)

    def like(self) -> fx.Node:
        """Return a float of the model, for its dtype and device."""
        if self._like is None:
            zero = torch.zeros((), dtype=self.dtype)
            self._like = self._add_constant("floats_like", ModelDtype(zero))
        return self._like

    def _add_constant(self, name: str, module: GraphConstant) -> fx.Node:
        while hasattr(self.root, name):
            name += "_"
        self.root.add_module(name, module)
        return self.graph.call_module(name)

    def _argument(self, leaf: Any, has: str, want: str, name: str, *, tensors: bool) -> Any:
        """Emit an argument in the dtype to which the operation casts it."""
        if isinstance(leaf, Constant):
            if want == "size":
                return leaf.values
            exact = self.dtype if want == "float" else _DTYPES[want]
            value = torch.from_numpy(leaf.array()).to(exact)
            return self._add_constant(f"{name}_constant", GraphConstant(value))
        if has in _LITERALS:
            if not tensors or want == "size":
                return leaf
            return self._new(leaf, want)
        return self._cast(leaf, has, want)

    def _new(self, value: Any, want: str) -> fx.Node:
        """Make a tensor of a number."""
        return self.graph.call_method("new_full", (self.like(), (), value), _dtype(want))

    def _cast(self, node: Any, has: str, want: str) -> Any:
        if has == want:
            return node
        if has == "size":
            return self.graph.call_function(
                functional.size_tensor, (self.like(), node), _dtype(want)
            )
        if want == "float":
            return self.graph.call_method("type_as", (node, self.like()))
        return self.graph.call_method("to", (node, _DTYPES[want]))

    def _sizes(
        self, layer: LayerSpec, bare: str, args: tuple[Any, ...], name: str, used: int
    ) -> tuple[Any, Any]:
        """Compute with a tensor's sizes, which are Python integers."""
        if bare in _VALUES:
            return args[0], args[0]
        if bare == "Unstack":
            parts = [self.graph.call_function(operator.getitem, (args[0], i)) for i in range(used)]
            return None, tuple(parts)
        if bare == "Shape":
            spelled = Spelled("call_function", getattr, (args[0], "shape"))
        elif bare == "GetItem":
            spelled = _getitem(layer.config, *args)
        elif bare in _OF_SIZES:
            spelled = Spelled("call_function", _OF_SIZES[bare], args)
        else:
            raise UnsupportedOptionError(
                f"operation {bare} of a tensor's sizes is not supported",
                "use a fixed size, or a layer of your own, given with --plugin",
                place=layer.place,
            )
        return (self.graph.create_node(*spelled, name=name),) * 2

    def _target(
        self, layer: LayerSpec, bare: str
    ) -> tuple[Callable[..., Any], dict[str, Any], tuple[str, ...]]:
        config, gives = layer.config, layer.semantics["kinds"]["gives"]
        if bare == "Activation":
            value = config["function"]
            named = {"name": value} if isinstance(value, str) else dict(value)
            return activations.FUNCTIONS[named.pop("name")], named, ()
        target = _TARGETS[bare]
        names = {option: there for there, option in target.names.items()}
        options = dict(target.fixed)
        for key in OPS[layer.class_name].options_of_function:
            options[names.get(key, key)] = config[key]
        if "dim" in options and options["dim"] is None and bare in ("Max", "Min"):
            options["dim"] = ()
        if bare == "Arange":
            options["dtype"] = _DTYPES.get(config["dtype"])
        natural = target.gives
        if natural == ("int64",) and gives == ("float",) and "dtype" not in config:
            natural = ()
        return target.function, options, natural
