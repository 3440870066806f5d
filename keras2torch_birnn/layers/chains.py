"""The code of a model's ``forward``: chains of recurrent layers are called at once.

It leaves out what no output needs, such as masks that only a loss asks for. The graph itself has
every layer and every mask: whoever reads, exports or compiles it finds nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from itertools import repeat
from typing import Any, cast

import torch
from torch import fx, nn

from keras2torch_birnn.layers.dropout import (
    GaussianDropout,
    GaussianNoise,
    ShapedAlphaDropout,
    ShapedDropout,
)
from keras2torch_birnn.layers.graph_pickling import NodeData, describe, rebuild
from keras2torch_birnn.layers.masking import Masking, call_with_mask, differs
from keras2torch_birnn.layers.one_call import OneCall
from keras2torch_birnn.rnn.chain import Chain, Link, can_end, can_lead
from keras2torch_birnn.rnn.tensor_memory import refuse_tracing

# The identity in evaluation mode.
_BETWEEN = (
    nn.Dropout,
    nn.AlphaDropout,
    nn.Identity,
    ShapedDropout,
    ShapedAlphaDropout,
    GaussianDropout,
    GaussianNoise,
)


class ModelGraph(fx.GraphModule):
    """A converted model: a ``GraphModule`` that computes only what its outputs need.

    Without gradients and in evaluation mode it calls consecutive recurrent layers at once. All
    numbers stay the same.
    """

    _chains: tuple[Chain, ...] = ()
    _one_call: OneCall | None = None

    def recompile(self) -> Any:
        """Make the code of ``forward`` from the graph."""
        made = super().recompile()
        graph = _needed(self)
        found = list(_find_chains(self, graph))
        self._chains = tuple(Chain(list(map(_link, repeat(self), nodes))) for nodes in found)
        kind: Any = type(self)
        if _calls(graph) != _calls(self.graph):
            kind.forward = _compile(self, graph)
        self._one_call = OneCall(_needed(self))
        plain = chained = kind.forward
        if found:
            _call_at_once(graph, found)
            chained = _compile(self, graph)
        kind.forward = _choose(plain, chained)
        # A call of fx in between, which takes a microsecond and cuts the traceback of an error.
        del kind.__call__
        return made

    def _apply(self, *args: Any, **options: Any) -> Any:
        """Forget what was recorded of tensors that ``to``, ``double`` and others replace."""
        self._one_call = OneCall(_needed(self))
        module: Any = super()
        return module._apply(*args, **options)

    def __reduce__(self) -> Any:
        """Pickle the modules and the graph; the code is made from these."""
        kept = {
            name: value
            for name, value in self.__dict__.items()
            if name in _OF_ALL_MODULES or not name.startswith("_")
        }
        return _restore, (type(self).__name__, describe(self.graph), kept)

    def _call_chain(self, index: int, x: Any, mask: Any = None) -> Any:
        """Call the layers of a chain; ``forward`` does."""
        return self._chains[index].call(self._modules, x, mask)


_OF_ALL_MODULES = frozenset(nn.Module().__dict__)


def _restore(name: str, nodes: Sequence[NodeData], kept: dict[str, Any]) -> ModelGraph:
    root = nn.Module()
    root.__dict__.update(kept)
    model = ModelGraph(root, rebuild(nodes), name)
    model.__dict__.update(kept)
    return model


def _choose(plain: Callable[..., Any], chained: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``forward`` that runs one of both, which compute the same."""

    @wraps(plain)
    def forward(self: ModelGraph, *args: Any, **kwargs: Any) -> Any:
        refuse_tracing()
        if torch.compiler.is_compiling():
            return plain(self, *args, **kwargs)
        try:
            run = plain
            if not (self.training or torch.is_grad_enabled()):
                program = self._one_call
                outputs = program and program.run(self, args, kwargs)
                if outputs is not None:
                    return outputs
                run = chained
            return run(self, *args, **kwargs)
        except RuntimeError as error:
            from keras2torch_birnn.layers.small_inputs import find_small_input

            small = find_small_input(self, error)
            if small is None:
                raise
            raise small from error

    return forward


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


def _find_chains(module: fx.GraphModule, graph: fx.Graph) -> Iterator[list[fx.Node]]:
    """Yield the nodes of each chain: calls of modules, each of which is the next one's input."""
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        if node in taken or not _calls_recurrent(module, node):
            continue
        chain, end = [node], 1
        while (following := _following(module, chain)) is not None:
            chain.append(following)
            if _calls_recurrent(module, following):
                end = len(chain)
        taken.update(chain[:end])
        yield chain[:end]


def _calls_recurrent(module: fx.GraphModule, node: fx.Node) -> bool:
    return (
        node.op == "call_module"
        and len(node.args) == 1
        and isinstance(node.args[0], fx.Node)
        and set(node.kwargs) <= {"mask"}
        and can_end(_module_of(module, node))
    )


def _following(module: fx.GraphModule, chain: Sequence[fx.Node]) -> fx.Node | None:
    """Return the node that can be called at once with a chain; None if there is none."""
    last = chain[-1]
    if len(last.users) != 1:
        return None
    (node,) = last.users
    if node.op != "call_module" or node.args != (last,):
        return None
    called = _module_of(module, last)
    if not (isinstance(called, _BETWEEN) or can_lead(called)):
        return None
    if type(_module_of(module, node)) in _BETWEEN:
        return None if node.kwargs else node
    alike = node.kwargs == chain[0].kwargs and all(node.target != one.target for one in chain)
    return node if alike and _calls_recurrent(module, node) else None


def _module_of(module: fx.GraphModule, node: fx.Node) -> nn.Module:
    return module.get_submodule(str(node.target))


def _link(module: fx.GraphModule, node: fx.Node) -> Link:
    target = str(node.target)
    return Link(tuple(target.split(".")), type(module.get_submodule(target)) not in _BETWEEN)


def _call_at_once(graph: fx.Graph, chains: Sequence[Sequence[fx.Node]]) -> None:
    """Replace the calls of each chain by one."""
    for index, nodes in enumerate(chains):
        first, last = nodes[0], nodes[-1]
        with graph.inserting_before(last):
            method = graph.create_node("get_attr", "_call_chain")
            args = (method, index, first.args[0])
            called = graph.call_method("__call__", args, dict(first.kwargs))
        last.replace_all_uses_with(called)
        for node in reversed(nodes):
            graph.erase_node(node)


def _compile(module: fx.GraphModule, graph: fx.Graph) -> Callable[..., Any]:
    """Return the code of a graph whose modules are those of a model."""
    compiled: Any = type(fx.GraphModule(module, graph))
    return cast(Callable[..., Any], compiled.forward)
