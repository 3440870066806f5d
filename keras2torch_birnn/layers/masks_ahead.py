"""Let one wait of the host for a GPU serve several masks of a model.

Those that depend on the first layer that packs by a mask, or on later ones, are not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from torch import Tensor, fx

from keras2torch_birnn.layers.merging import all_masks, any_mask, concatenated_mask
from keras2torch_birnn.layers.time_distributed import fold_steps
from keras2torch_birnn.rnn.masked_run import as_flags
from keras2torch_birnn.rnn.masks import count_valid
from keras2torch_birnn.rnn.once_per_call import expect, once

# Functions that join masks, and take the tensors for their shapes.
_JOINS: Mapping[str, Callable[..., Tensor]] = {
    join.__name__: join for join in (all_masks, any_mask, concatenated_mask)
}


def announce_masks(graph: fx.Graph, masks: Mapping[fx.Node, fx.Node]) -> None:
    """Compute masks before the first layer that packs by one, and announce all of them there.

    masks: each with the first layer that packs by it, in the order of the graph. A mask that joins
    others takes the tensors of layers, too: it stays, and is computed before as well, where these
    are not needed.
    """
    first = next(iter(masks.values()))
    needed = {*masks}
    for node in reversed(graph.nodes):
        needed |= {*node.all_input_nodes} if node in needed else set()
    ahead = {node: node for node in takewhile(lambda node: node is not first, graph.nodes)}
    for node in [node for node in graph.nodes if node in needed and node not in ahead]:
        if node.op != "call_function":
            continue
        if all(ahead.get(one) is one for one in node.all_input_nodes):
            first.prepend(node)
            ahead[node] = node
        elif node.target in _JOINS.values() and all(m is None or m in ahead for m in node.args[1]):
            name, parts = node.target.__name__, tuple(m and ahead[m] for m in node.args[1])
            with graph.inserting_before(first):
                joined = graph.call_function(join_before, (name, parts), node.kwargs)
            with graph.inserting_before(node):
                args = (joined, parts, name, *node.args)
                found = graph.call_function(join_again, args, node.kwargs)
            node.replace_all_uses_with(found)
            graph.erase_node(node)
            ahead[node] = ahead[found] = joined
    with graph.inserting_before(first):
        graph.call_function(announce, tuple(ahead[mask] for mask in masks if mask in ahead))


def announce(*masks: Any) -> None:
    """Expect the lengths of masks; those of TimeDistributed layers have their steps folded."""
    for mask in masks:
        if isinstance(mask, Tensor) and mask.dim() > 1:  # layers refuse others
            while mask.dim() > 2:
                mask = once(fold_steps, mask)
            expect(once(count_valid, as_flags(mask)))


def join_before(name: str, parts: Sequence[Tensor | None], **options: Any) -> Tensor | None:
    """Join masks of one shape as if each were that of a tensor with one feature."""
    known = [part for part in parts if part is not None]
    if len({part.shape for part in known}) != 1:
        return None
    return _JOINS[name]([known[0][..., None]] * len(parts), parts, **options)


def join_again(
    joined: Tensor | None,
    parts: Sequence[Tensor | None],
    name: str,
    tensors: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    **options: Any,
) -> Tensor:
    """Return the mask that was joined before, if it is that of these tensors, or join the masks."""
    same = joined is not None and all(a is b for a, b in zip(parts, masks, strict=True))
    steps = {mask.shape for mask in masks if mask is not None}
    if joined is not None and same and all({x.shape[:-1]} == steps for x in tensors):
        return joined
    return _JOINS[name](tensors, masks, **options)
