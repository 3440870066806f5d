"""TimeDistributed as ports compute it: one call of the layer in it, on all steps of all rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import Array, LayerSpec, Structure, leaves, map_structure


def in_one_call(equations: Mapping[str, Equation]) -> Mapping[str, Equation]:
    """Return equations of which that of TimeDistributed calls its layer once.

    The numbers are the same. A mistake that mixes rows mixes those of all steps, as in a port.
    """
    by_step = equations.get("TimeDistributed")
    return {**equations, "TimeDistributed": partial(_at_once, by_step)} if by_step else equations


def _at_once(
    by_step: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    """Take every step of every row (B, T, ...) as a row of one step (B T, 1, ...)."""
    if any(one.config.get("stateful") for one in layer.parts["layer"].walk()):
        return by_step(layer, inputs, mask, context)
    rows, steps = next(leaves(inputs)).shape[:2]

    def fold(x: Array | None) -> Array | None:
        return None if x is None else x.reshape(rows * steps, 1, *x.shape[2:])

    def unfold(x: Array | None) -> Array | None:
        return None if x is None else x.reshape(rows, steps, *x.shape[2:])

    folded = map_structure(fold, inputs), map_structure(fold, mask)
    output, out_mask = by_step(layer, *folded, context)
    inside = f"{context.path}/"
    for kept in (context.layers, context.masks):
        kept |= {k: map_structure(unfold, v) for k, v in kept.items() if k.startswith(inside)}
    return map_structure(unfold, output), map_structure(unfold, out_mask)
