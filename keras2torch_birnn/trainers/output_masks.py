"""``output_mask``: the masks of a converted model's outputs, which Keras' losses leave out."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from keras2torch_birnn.errors import UsageError, check_module
from keras2torch_birnn.layers.training_terms import terms_of

Masks: TypeAlias = Tensor | tuple[Tensor | None, ...] | None
"""One mask, or a tuple with one for each output; None where an output has none."""
_MODEL = "mask_model"


def output_mask(model: nn.Module, *inputs: Tensor) -> Masks:
    """Compute the mask of a model's output: true where a loss of Keras counts.

    Only what the mask depends on is computed, such as ``ids != 0``, in eval mode and without
    gradients.

    Args:
        model: What ``convert`` or ``load`` returned.
        *inputs: The inputs of the model.

    Returns:
        A bool tensor (B, T), or (B, ...) as the layers make it; None if the output has no mask. Of
        a model with several outputs a tuple, in the order of the outputs.

    Raises:
        UsageError: The model was not made by ``k2t.convert`` or ``k2t.load``.
    """
    check_module(model)
    names = getattr(model, "meta", {}).get("output_masks")
    if not isinstance(model, fx.GraphModule) or names is None:
        raise UsageError(
            "output_mask of a module that was not made by k2t.convert or k2t.load",
            "give it the converted model, without what is around it",
        )
    found = _compute(model, names, inputs)
    return found[0] if len(found) == 1 else found


def _compute(
    model: fx.GraphModule, names: tuple[str | None, ...], inputs: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    if not any(names):
        return (None,) * len(names)
    masking = _mask_graph(model, names)
    kept = [terms.kept for one in model.modules() if (terms := terms_of(one)) and terms.kept]
    modes = {module: module.training for module in model.modules()}
    for hook in kept:
        hook.paused = True
    model.eval()
    try:
        with torch.no_grad():
            values: Any = fx.Interpreter(model, graph=masking).run(*inputs)
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in kept:
            hook.paused = False
    return tuple(values)


def _mask_graph(model: fx.GraphModule, names: tuple[str | None, ...]) -> fx.Graph:
    """Return the part of the model's graph that computes these nodes; made once."""
    known = model.meta.get(_MODEL)
    if isinstance(known, fx.Graph):
        return known
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(model.graph, copies)
    by_name = {node.name: copy for node, copy in copies.items()}
    graph.output(tuple(None if name is None else by_name[name] for name in names))
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    model.meta[_MODEL] = graph
    return graph
