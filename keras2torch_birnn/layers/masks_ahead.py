"""Let one wait of the host for a GPU serve all masks of a model that it can know then.

Those are masks that do not depend on the values of the first layer that packs by one, or of later
layers. One that depends on the shapes of these alone, such as a mask that joins others, is computed
where it is, and again on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import dropwhile
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from keras2torch_birnn.layers.merging import all_masks, any_mask, concatenated_mask
from keras2torch_birnn.layers.time_distributed import fold_steps, step_counts, unfold_steps
from keras2torch_birnn.rnn.masked_run import as_flags
from keras2torch_birnn.rnn.masks import count_valid
from keras2torch_birnn.rnn.once_per_call import expect, find_on_host, note_on_host, once
from keras2torch_birnn.spec import leaves, map_structure

# Functions that give the same bits on every device, and the argument whose shape alone counts.
EXACT: Mapping[Callable[..., Any], int | None] = {
    **dict.fromkeys((torch.ones_like, torch.zeros_like, torch.full_like), 0),
    **dict.fromkeys((all_masks, any_mask, concatenated_mask, step_counts), 0),
    unfold_steps: 1,
    **dict.fromkeys((fold_steps, torch.any, torch.all, torch.cat, Tensor.unsqueeze), None),
    **dict.fromkeys((torch.logical_and, torch.logical_or, torch.logical_not, getitem), None),
}
_BY_NAME = {function.__name__: function for function in EXACT}


def announce_masks(graph: fx.Graph, masks: Mapping[fx.Node, fx.Node]) -> None:
    """Compute masks before the first layer that packs by one, and announce all of them there.

    masks: each with the first layer that packs by it, in the order of the graph.
    """
    first = next(iter(masks.values()))
    needed = {*masks}
    for node in reversed(graph.nodes):
        needed |= _values(node) if node in needed else set()
    later = list(dropwhile(lambda node: node is not first, graph.nodes))
    ahead, both, read = {*graph.nodes} - {*later}, set[fx.Node](), set[fx.Node]()
    announced = [mask for mask in masks if mask in ahead]
    for node in [node for node in later if node in needed and node.op.startswith("call_")]:
        if node.op != "call_module" and ahead.issuperset(node.all_input_nodes):
            first.prepend(node)
            ahead.add(node)
            announced += [node] if node in masks else []
        elif _function(node) in EXACT and _values(node) <= ahead | both:
            read |= _values(node) & ahead
            with graph.inserting_before(node):
                args = (_function(node).__name__, *node.args)
                found = graph.call_function(compute_on_both, args, node.kwargs)
                if node in masks:
                    graph.call_function(note_lengths, (found,))
            node.replace_all_uses_with(found)
            graph.erase_node(node)
            both.add(found)
    with graph.inserting_before(first):
        graph.call_function(announce, (tuple(announced), tuple(read)))


def announce(masks: tuple[Any, ...], read: tuple[Any, ...]) -> None:
    """Expect the lengths of masks, and what later masks are computed of."""
    lengths = [_lengths(mask) for mask in masks if _has_lengths(mask)]
    for tensor in (*lengths, *read):
        if isinstance(tensor, Tensor):
            expect(tensor)


def compute_on_both(name: str, *args: Any, **options: Any) -> Tensor:
    """Call a function, on the host as well if the values of its arguments are known there."""
    function = _BY_NAME[name]
    values = (*_without_shape(function, args), options)
    found: Tensor = function(*args, **options)
    if all(find_on_host(one) is not None for one in leaves(values) if isinstance(one, Tensor)):
        given = list(map_structure(_hold, args))
        if (place := EXACT[function]) is not None:
            given[place] = map_structure(_hold_shape, args[place])
        note_on_host(found, function(*given, **map_structure(_hold, options)))
    return found


def note_lengths(mask: Tensor) -> None:
    """Note the lengths of a mask that is known on the host."""
    held = find_on_host(mask)
    if held is not None and _has_lengths(mask):
        note_on_host(_lengths(mask), _lengths(held))


def _has_lengths(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.dim() > 1  # layers refuse others


def _lengths(mask: Tensor) -> Tensor:
    """Return the lengths of a mask; that of TimeDistributed layers has its steps folded."""
    while mask.dim() > 2:
        mask = once(fold_steps, mask)
    return once(count_valid, as_flags(mask))


def _function(node: fx.Node) -> Any:
    is_method = node.op == "call_method"
    return getattr(Tensor, str(node.target), None) if is_method else node.target


def _values(node: fx.Node) -> set[fx.Node]:
    """Return the nodes whose values a node needs, not their shapes alone."""
    given = leaves((_without_shape(_function(node), node.args), node.kwargs))
    return {one for one in given if isinstance(one, fx.Node)}


def _without_shape(function: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of which not the shape alone counts."""
    return tuple(arg for place, arg in enumerate(args) if place != EXACT.get(function))


def _hold(value: Any) -> Any:
    return find_on_host(value) if isinstance(value, Tensor) else value


def _hold_shape(value: Tensor) -> Tensor:
    return torch.zeros((), dtype=value.dtype, device="cpu").expand(value.shape)
