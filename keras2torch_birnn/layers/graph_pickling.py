"""A model's graph as plain data, for pickles.

Torch would pickle the code of ``forward`` and trace it again. That runs the package's functions on
stand-ins for tensors, which fails where a function asks for a shape, and renames the nodes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import fx


@dataclass(frozen=True)
class _Reference:
    """Another node, where it is an argument."""

    name: str


class NodeData(NamedTuple):
    """A node: references to others in the place of these."""

    op: str
    name: str
    target: Any
    args: Any
    kwargs: Any


def describe(graph: fx.Graph) -> list[NodeData]:
    """Return the nodes of a graph in their order."""

    def refer(node: fx.Node) -> Any:
        return _Reference(node.name)

    return [
        NodeData(
            node.op,
            node.name,
            node.target,
            fx.node.map_arg(node.args, refer),
            fx.node.map_arg(node.kwargs, refer),
        )
        for node in graph.nodes
    ]


def rebuild(nodes: Iterable[NodeData]) -> fx.Graph:
    """Return the graph that was described; its nodes have the names that they had."""
    graph = fx.Graph()
    found: dict[str, fx.Node] = {}

    def find(value: Any) -> Any:
        return found[value.name] if isinstance(value, _Reference) else value

    for node in nodes:
        args, kwargs = (fx.node.map_aggregate(given, find) for given in (node.args, node.kwargs))
        found[node.name] = graph.create_node(node.op, node.target, args, kwargs, node.name)
    return graph
