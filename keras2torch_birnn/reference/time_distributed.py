"""TimeDistributed: the same layer at every time step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from keras2torch_birnn.reference.context import (
    Context,
    Equation,
    Result,
    Scan,
    fixed_batch_keeps_mask,
    mask_enters_time_distributed,
)
from keras2torch_birnn.spec import LayerSpec, Structure, leaves, map_structure


def time_distributed(
    layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    """Compute ``TimeDistributed.call`` and ``.compute_mask``.

    The inner layer on (B, ...) at every step.

    The mask goes in step by step, or passes by (``_mask_passes_by``). Stateful inner layers are
    carried from step to step by Keras 3.15; before, ``keras.backend.rnn`` runs the first step
    twice, which is refused here.
    """
    inner = layer.parts["layer"]
    if context.states is not None and context.generation.name != "keras3":
        if any(part.config.get("stateful") for part in inner.walk()):
            raise ValueError(f"layer {layer.name}: a stateful layer inside TimeDistributed")
    inside_mask = None if _mask_passes_by(layer, context) else mask
    steps = next(leaves(inputs)).shape[1]
    path = f"{context.path}/{inner.name}"
    place = f"{context.place}/{inner.name}" if _holds_model(inner) else context.place
    results, traces = [], []
    for t in range(steps):
        scans: dict[str, Scan] | None = None if context.scans is None else {}
        trace = context.with_fields(
            path=path, place=place, layers={}, masks={}, scans=scans, arguments=1
        )
        step_inputs, step_mask = _at(inputs, t), _at(inside_mask, t)
        results.append(trace.apply(inner, step_inputs, step_mask))
        traces.append(trace)
    for path in traces[0].layers if traces else ():
        context.layers[path] = _stack([trace.layers[path] for trace in traces])
        context.masks[path] = _stack([trace.masks[path] for trace in traces])
    if context.scans is not None:
        found = [trace.scans or {} for trace in traces]
        for path in found[0] if found else ():
            context.scans[path] = Scan(*_stack([scans[path] for scans in found]))
    output = _stack([value for value, _ in results])
    return output, _outer_mask(_stack([m for _, m in results]), mask, layer, context)


def _holds_model(layer: LayerSpec) -> bool:
    """Tell whether a layer is a model, which has a place of its own, or has one in it."""
    while layer.class_name == "TimeDistributed":
        layer = layer.parts["layer"]
    return layer.graph is not None


def _outer_mask(inner: Structure, mask: Structure, layer: LayerSpec, context: Context) -> Structure:
    """Return the output's mask; Keras 3.15 returns the input's (``Layer.compute_mask``).

    Keras 2.2.4 and 2.15 stack the masks of the inner layer's outputs; if there are none, they
    return the input's mask reduced to (B, T) by any.
    """
    if context.generation.name == "keras3" or _mask_passes_by(layer, context):
        return mask
    if _is_fixed(layer) and fixed_batch_keeps_mask(context.generation):
        return mask
    if isinstance(mask, tuple):  # several inputs, none of which has a mask
        return inner
    if mask is None or any(m is not None for m in leaves(inner)):
        return inner
    return np.asarray(mask).astype(bool).reshape(*mask.shape[:2], -1).any(axis=-1)


def _mask_passes_by(layer: LayerSpec, context: Context) -> bool:
    """Tell whether the mask bypasses the layer: before Keras 2.2.0; to 2.3.1 with a fixed batch."""
    fixed_in_keras2 = _is_fixed(layer) and context.generation.name == "keras2"
    return fixed_in_keras2 or not mask_enters_time_distributed(context.generation)


def _is_fixed(layer: LayerSpec) -> bool:
    shape = layer.input_shape
    return isinstance(shape, tuple) and len(shape) > 0 and isinstance(shape[0], int)


def _at(structure: Structure, t: int) -> Structure:
    """Return time step t of every array (B, T, ...)."""
    return map_structure(lambda leaf: None if leaf is None else leaf[:, t], structure)


def _stack(steps: Sequence[Structure]) -> Structure:
    """Stack the arrays (B, ...) of all steps to (B, T, ...); None stays None."""
    first = steps[0]
    if isinstance(first, dict):
        return {key: _stack([step[key] for step in steps]) for key in first}
    if isinstance(first, tuple):
        return tuple(_stack(parts) for parts in zip(*steps, strict=True))
    return None if first is None else np.stack(steps, axis=1)


EQUATIONS: Mapping[str, Equation] = {
    "TimeDistributed": time_distributed,
}
