"""A converted model as an fx graph module: its code, names, errors and pickles.

``forward`` computes only what the outputs need, without masks that only a loss asks for. The graph
itself has every layer and every mask: whoever reads, exports or compiles it finds nothing else.
"""

from __future__ import annotations

import keyword
import linecache
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from traceback import walk_tb
from typing import Any, NamedTuple, cast

import torch
from torch import fx, nn

from keras2torch_birnn.errors import ArgumentValueError, K2TError, printable
from keras2torch_birnn.layers.core import Masking, call_with_mask, differs
from keras2torch_birnn.rnn.tensor_memory import refuse_tracing


class ModelGraph(fx.GraphModule):
    """A converted model: a ``GraphModule`` that computes only what its outputs need."""

    def recompile(self) -> Any:
        """Make the code of ``forward`` from the graph."""
        made = super().recompile()
        graph = _needed(self)
        kind: Any = type(self)
        if _calls(graph) != _calls(self.graph):
            kind.forward = _compile(self, graph)
        kind.forward = _naming_layers(kind.forward)
        # A call of fx in between, which takes a microsecond and cuts the traceback of an error.
        del kind.__call__
        return made

    def __reduce__(self) -> Any:
        """Pickle the modules and the graph; the code is made from these."""
        kept = {
            name: value
            for name, value in self.__dict__.items()
            if name in _OF_ALL_MODULES or not name.startswith("_")
        }
        return _restore, (type(self).__name__, _describe(self.graph), kept)


_OF_ALL_MODULES = frozenset(nn.Module().__dict__)


# ---- errors -------------------------------------------------------------------------------------


def _naming_layers(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``forward`` whose errors name the Keras layer that they come from."""

    @wraps(forward)
    def named(self: ModelGraph, *args: Any, **kwargs: Any) -> Any:
        refuse_tracing()
        if torch.compiler.is_compiling():
            return forward(self, *args, **kwargs)
        try:
            return forward(self, *args, **kwargs)
        except Exception as error:
            place = _find_layer(self, forward, error)
            if not place:
                raise
            if (found := _find_wrong_ids(error)) is not None:
                advice = "look at the vocabulary that the ids come from"
                raise ArgumentValueError(found, advice, place=place) from error
            if isinstance(error, K2TError):
                error.place = error.place or place
            elif error.args:
                error.args = (f"{place}: {error.args[0]}", *error.args[1:])
            raise

    return named


def _find_layer(model: ModelGraph, forward: Callable[..., Any], error: Exception) -> str:
    """Return the path of the Keras call that failed, empty if it is none; see ``meta``.

    Every line of the code computes one node, whose name it begins with.
    """
    lines = (
        linecache.getline(frame.f_code.co_filename, line)
        for frame, line in walk_tb(error.__traceback__)
        if frame.f_code is forward.__code__
    )
    failed = next(lines, "").partition("=")[0].strip()
    names = [node.name for node in model.graph.nodes]
    if failed not in names:
        return ""
    paths = {**model.meta.get("paths", {}), **model.meta.get("mask_paths", {})}
    # What is computed before a layer's module has no path of its own.
    later = names[names.index(failed) :]
    return printable(next((paths[name] for name in later if name in paths), ""))


def _find_wrong_ids(error: Exception) -> str | None:
    """Say which ids an Embedding has no row for, if that is the error."""
    for frame, _ in walk_tb(error.__traceback__):
        module, ids = frame.f_locals.get("self"), frame.f_locals.get("input")
        if type(module) is nn.Embedding and isinstance(ids, torch.Tensor):
            wrong = ids[(ids < 0) | (ids >= module.num_embeddings)].tolist()
            last = module.num_embeddings - 1
            return f"ids from 0 to {last} are expected, found {wrong[0]}" if wrong else None
    return None


# ---- the code of what is needed ----------------------------------------------------------------


def _needed(model: fx.GraphModule) -> fx.Graph:
    """Copy a model's graph without what nothing reads or comes twice; every module is called."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(model.graph, {}))
    for node in reversed(list(copy.nodes)):
        if not node.users and node.op in ("call_function", "call_method", "get_attr"):
            copy.erase_node(node)
    for mask in copy.find_nodes(op="call_function", target=differs):
        _use_mask(model, copy, mask)
    return copy


def _calls(graph: fx.Graph) -> list[Any]:
    return [node.target for node in graph.nodes]


def _use_mask(model: fx.GraphModule, graph: fx.Graph, mask: fx.Node) -> None:
    """Give the mask of a Masking to the modules, which would compute it again."""
    x, value = cast(fx.Node, mask.args[0]), mask.kwargs["value"]
    made_again = [
        node
        for node in graph.nodes
        if node.op == "call_module"
        and node.args == (x,)
        and type(called := _module_of(model, node)) is Masking
        and called.mask_value == value
    ]
    for node in made_again[:1]:
        mask.args = (x, None)  # it depends on x alone
        node.prepend(mask)
    for node in made_again:
        with graph.inserting_before(node):
            module = graph.create_node("get_attr", node.target)
            masked = graph.call_function(call_with_mask, (module, x, mask))
        node.replace_all_uses_with(masked)
        graph.erase_node(node)


def _module_of(module: fx.GraphModule, node: fx.Node) -> nn.Module:
    return module.get_submodule(str(node.target))


def _compile(module: fx.GraphModule, graph: fx.Graph) -> Callable[..., Any]:
    """Return the code of a graph whose modules are those of a model."""
    compiled: Any = type(fx.GraphModule(module, graph))
    return cast(Callable[..., Any], compiled.forward)


# ---- pickles ------------------------------------------------------------------------------------
# Torch would pickle the code of ``forward`` and trace it again. That runs the package's functions
# on stand-ins for tensors, which fails where a function asks for a shape, and renames the nodes.


@dataclass(frozen=True)
class _Reference:
    """Another node, where it is an argument."""

    name: str


class _NodeData(NamedTuple):
    """A node: references to others in the place of these."""

    op: str
    name: str
    target: Any
    args: Any
    kwargs: Any


def _describe(graph: fx.Graph) -> list[_NodeData]:
    """Return the nodes of a graph in their order."""

    def refer(node: fx.Node) -> Any:
        return _Reference(node.name)

    return [
        _NodeData(
            node.op,
            node.name,
            node.target,
            fx.node.map_arg(node.args, refer),
            fx.node.map_arg(node.kwargs, refer),
        )
        for node in graph.nodes
    ]


def _rebuild(nodes: Iterable[_NodeData]) -> fx.Graph:
    """Return the graph that was described; its nodes have the names that they had."""
    graph = fx.Graph()
    found: dict[str, fx.Node] = {}

    def find(value: Any) -> Any:
        return found[value.name] if isinstance(value, _Reference) else value

    for node in nodes:
        args, kwargs = (fx.node.map_aggregate(given, find) for given in (node.args, node.kwargs))
        found[node.name] = graph.create_node(node.op, node.target, args, kwargs, node.name)
    return graph


def _restore(name: str, nodes: Sequence[_NodeData], kept: dict[str, Any]) -> ModelGraph:
    root = nn.Module()
    root.__dict__.update(kept)
    model = ModelGraph(root, _rebuild(nodes), name)
    model.__dict__.update(kept)
    return model


# ---- names --------------------------------------------------------------------------------------

# Names that torch's modules, fx's graph modules and the code that fx writes use themselves.
_WRITTEN = ("torch", "device", "inf", "nan", "NoneType", "slice", "getattr", "fx_pytree", "pytree")
_TAKEN = frozenset((*dir(nn.Module()), *dir(fx.GraphModule), "meta", *_WRITTEN))


def attribute_names(names: Sequence[str]) -> dict[str, str]:
    """Map Keras layer names to unique attribute names, unchanged where Python and torch allow it.

    A name that is taken gets an underscore, then a number. Numbers are counted for every base, so
    the work is linear in the number of names, also where a file's names are made to collide.
    """
    out: dict[str, str] = {}
    used: set[str] = set()
    times: Counter[str] = Counter()
    for name in names:
        base = plain = _plain(name)
        while plain in used or not _free(plain):
            times[base] += 1
            plain = f"{base}_" if times[base] == 1 else f"{base}_{times[base]}"
        used.add(plain)
        out[name] = plain
    return out


def _plain(name: str) -> str:
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    if not plain or plain[0].isdigit() or plain.startswith("_"):
        return f"layer_{plain.lstrip('_')}"
    return plain


def _free(name: str) -> bool:
    # fx writes names in lower case, and "self" is the module.
    return name not in _TAKEN and not keyword.iskeyword(name) and name.lower() != "self"
