"""The nodes of a converted model's graph in the order in which they are written."""

from __future__ import annotations

from torch import fx

from keras2torch_birnn.layers.embedding import not_zero
from keras2torch_birnn.layers.masking import differs


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
