"""The code of a model's ``forward``: only what its outputs need.

It leaves out what no output needs, such as masks that only a loss asks for. The graph itself has
every layer and every mask: whoever reads, exports or compiles it finds nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, cast

import torch
from torch import fx, nn

from keras2torch_birnn.layers.graph_pickling import NodeData, describe, rebuild
from keras2torch_birnn.layers.masking import Masking, call_with_mask, differs
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
        kind.forward = _naming_small_inputs(kind.forward)
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
        return _restore, (type(self).__name__, describe(self.graph), kept)


_OF_ALL_MODULES = frozenset(nn.Module().__dict__)


def _restore(name: str, nodes: Sequence[NodeData], kept: dict[str, Any]) -> ModelGraph:
    root = nn.Module()
    root.__dict__.update(kept)
    model = ModelGraph(root, rebuild(nodes), name)
    model.__dict__.update(kept)
    return model


def _naming_small_inputs(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``forward`` that names the layer whose window does not fit into an input."""

    @wraps(forward)
    def named(self: ModelGraph, *args: Any, **kwargs: Any) -> Any:
        refuse_tracing()
        if torch.compiler.is_compiling():
            return forward(self, *args, **kwargs)
        try:
            return forward(self, *args, **kwargs)
        except RuntimeError as error:
            from keras2torch_birnn.layers.small_inputs import find_small_input

            small = find_small_input(self, error)
            if small is None:
                raise
            raise small from error

    return named


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
