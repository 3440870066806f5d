"""Let one wait of the host for a GPU serve several masks of a model.

Those that depend on the first layer that packs by a mask, or on later ones, are not among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from torch import Tensor, fx

from keras2torch_birnn.layers.merging import all_masks, any_mask, concatenated_mask, join_masks
from keras2torch_birnn.layers.time_distributed import fold_steps
from keras2torch_birnn.rnn.masked_run import as_flags
from keras2torch_birnn.rnn.masks import count_valid
from keras2torch_birnn.rnn.once_per_call import expect, once

# The options of ``join_masks`` for functions that join masks, and take the tensors, too.
_JOINS: Mapping[Any, Mapping[str, Any]] = {
    all_masks: {"axis": -1, "rule": "all"},
    any_mask: {"axis": -1, "rule": "any"},
    concatenated_mask: {},
}


def announce_masks(graph: fx.Graph, masks: Mapping[fx.Node, fx.Node]) -> None:
    """Compute masks before the first layer that packs by one, and announce all of them there.

    masks: each with the first layer that packs by it, in the order of the graph. A mask that joins
    others takes the tensors of layers, too: it stays, and is computed before as well, where these
    are not needed. ``once`` then knows it again.
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
        elif node.target in _JOINS and all(m is None or m in ahead for m in node.args[1]):
            joined = tuple(m and ahead[m] for m in node.args[1])
            options = {**_JOINS[node.target], **node.kwargs}
            with graph.inserting_before(first):
                ahead[node] = graph.call_function(join_masks, (joined,), options)
    with graph.inserting_before(first):
        graph.call_function(announce, tuple(ahead[mask] for mask in masks if mask in ahead))


def announce(*masks: Any) -> None:
    """Expect the lengths of masks; those of TimeDistributed layers have their steps folded."""
    for mask in masks:
        if isinstance(mask, Tensor) and mask.dim() > 1:  # layers refuse others
            while mask.dim() > 2:
                mask = once(fold_steps, mask)
            expect(once(count_valid, as_flags(mask)))
