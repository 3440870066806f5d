"""Chains of recurrent layers in a model's graph, which ``forward`` calls at once.

The graph itself has every layer: whoever reads, exports or compiles it finds nothing else.
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
from keras2torch_birnn.rnn.chain import Chain, Link, can_end, can_lead
from keras2torch_birnn.rnn.tensor_memory import is_tracing

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
    """A converted model: a ``GraphModule`` that calls consecutive recurrent layers at once.

    Only without gradients and in evaluation mode; all numbers stay the same.
    """

    _chains: tuple[Chain, ...] = ()

    def recompile(self) -> Any:
        """Make the code of ``forward`` from the graph."""
        made = super().recompile()
        found = list(_find_chains(self))
        self._chains = tuple(Chain(list(map(_link, repeat(self), nodes))) for nodes in found)
        if found:
            kind: Any = type(self)
            kind.forward = _choose(kind.forward, _make_forward(self, found))
        return made

    def _call_chain(self, index: int, x: Any, mask: Any = None) -> Any:
        """Call the layers of a chain; ``forward`` does."""
        return self._chains[index].call(self._modules, x, mask)


def _choose(plain: Callable[..., Any], chained: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``forward`` that runs one of two, which compute the same."""

    @wraps(plain)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or self.training or torch.is_grad_enabled():
            return plain(self, *args, **kwargs)
        return (plain if is_tracing() else chained)(self, *args, **kwargs)

    return forward


def _find_chains(module: fx.GraphModule) -> Iterator[list[fx.Node]]:
    """Yield the nodes of each chain: calls of modules, each of which is the next one's input."""
    taken: set[fx.Node] = set()
    for node in module.graph.nodes:
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


def _make_forward(
    module: fx.GraphModule, chains: Sequence[Sequence[fx.Node]]
) -> Callable[..., Any]:
    """Return the code of a model's graph in which each chain is one call."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, copies))
    for index, nodes in enumerate(chains):
        first, last = copies[nodes[0]], copies[nodes[-1]]
        with graph.inserting_before(last):
            method = graph.create_node("get_attr", "_call_chain")
            args = (method, index, first.args[0])
            called = graph.call_method("__call__", args, dict(first.kwargs))
        last.replace_all_uses_with(called)
        for node in reversed(nodes):
            graph.erase_node(copies[node])
    compiled: Any = type(fx.GraphModule(module, graph))
    return cast(Callable[..., Any], compiled.forward)
