"""The loop over time, with the steps of ``cells``; Bidirectional and TimeDistributed.

Letters: B batch, T time, F features, H units (of a ConvLSTM images instead of features and units).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from keras2torch_birnn.reference.cells import State, Step, first_state, state_count, step_of
from keras2torch_birnn.reference.context import (
    Context,
    Equation,
    Result,
    Scan,
    carried_state_wins,
    fixed_batch_keeps_mask,
    mask_enters_time_distributed,
)
from keras2torch_birnn.schema.merge_modes import MERGE_MODES
from keras2torch_birnn.spec import Array, LayerSpec, Structure, leaves, map_structure

# ---- recurrent layers ----------------------------------------------------------------------------

# One step: the state before it, what the cell gives, the state after it, as if it counted.
_Taken: TypeAlias = tuple[State, Array, State]

# ---- the loop over time ------------------------------------------------------------------------


def recurrent(layer: LayerSpec, inputs: Array, mask: Structure, context: Context) -> Result:
    """Compute an LSTM, a GRU, a SimpleRNN or an RNN over a cell or a stack of them."""
    start = partial(first_state, layer, context)
    return loop(layer, inputs, mask, context, step_of(layer, context), start)


def loop(
    layer: LayerSpec,
    inputs: Array,
    mask: Structure,
    context: Context,
    step: Step,
    first: Callable[[Array], State],
) -> Result:
    """Loop over time: ``RNN.call`` and ``RNN.compute_mask`` (Keras 2.2.4, 2.15, 3.15).

    Inputs (B, T, F); output (B, T, H) in the order of reading, or (B, H); then the last state.
    ``first``: inputs (B, F) of one step -> the states before it, if none are given or carried.
    """
    config = layer.config
    x = context.number(inputs)
    valid = None if mask is None else _steps_that_count(mask, x)
    start = _start(layer, x, first, context)
    if context.nudge is not None:
        step = _nudged(step, context.nudge)
    outputs, last, state, taken = _read(layer, x, valid, start, step)
    if context.scans is not None:
        in_time = taken[::-1] if config["go_backwards"] else taken
        before, output, after = _stacked(in_time)
        context.scans[context.path] = Scan(x, valid, start, before, output, after)
    if config["stateful"] and context.states is not None:
        context.states[context.place] = state
    output = outputs if config["return_sequences"] else last
    out_mask = mask if config["return_sequences"] else None
    if config["return_state"]:
        return (output, *state), (out_mask, *[None] * len(state))
    return output, out_mask


def _read(
    layer: LayerSpec, x: Array, valid: Array | None, state: State, step: Step
) -> tuple[Array, Array, State, list[_Taken]]:
    """Run all steps; return outputs (B, T, H) as read, the last (B, H), the last state, the steps.

    A masked step leaves the state as it is. The output at a masked step is:
    ``previous_state``: ``keras.backend.rnn``, TensorFlow, Keras 2.2.4, not unrolled;
    ``previous_output``: the same unrolled, and tf.keras and Keras 3 without zeroing;
    ``zeros``: tf.keras 2.15 and Keras 3.15 with ``zero_output_for_mask``;
    ``zeros_unreversed``: these unrolled, which zero at the end and forget to reverse the mask.
    """
    rule = layer.semantics["masked_output"]
    steps = x.shape[1]
    reading_order = range(steps - 1, -1, -1) if layer.config["go_backwards"] else range(steps)
    outputs: list[Array] = []
    taken: list[_Taken] = []
    output = zeros = np.zeros_like(step(x[:, 0], state)[0])
    for t in reading_order:
        new, new_state = step(x[:, t], state)
        taken.append((state, new, new_state))
        if valid is None:
            output, state = new, new_state
        else:
            counts = valid[:, t]
            at_masked = {
                "previous_state": state[0],
                "previous_first_state": state[0],
                "previous_output": output,
                "zeros": zeros,
                "zeros_unreversed": output,
            }[rule]
            output = _where(counts, new, at_masked)
            state = tuple(
                _where(counts, now, old) for now, old in zip(new_state, state, strict=True)
            )
        outputs.append(output)
    sequence, last = np.stack(outputs, axis=1), outputs[-1]
    if valid is not None and rule == "zeros_unreversed":
        sequence = _where(valid, sequence, zeros[:, np.newaxis])  # position by position, as read
        last = _where(valid[:, reading_order[-1]], last, zeros)  # this one is reversed
    return sequence, last, state, taken


def _nudged(step: Step, nudge: Callable[[Array], Array]) -> Step:
    """Make a step that reads a slightly changed input and state."""
    return lambda x, state: step(nudge(x), tuple(map(nudge, state)))


def _stacked(taken: list[_Taken]) -> tuple[State, Array, State]:
    """Stack steps (B, ...) to (B, T, ...): states before them, outputs, states after them."""
    before, output, after = zip(*taken, strict=True)
    return (
        tuple(np.stack(parts, axis=1) for parts in zip(*before, strict=True)),
        np.stack(output, axis=1),
        tuple(np.stack(parts, axis=1) for parts in zip(*after, strict=True)),
    )


def _where(flags: Array, a: Array, b: Array) -> Array:
    """Apply ``np.where`` with flags (B,) or (B, T), broadcast over the other axes."""
    return np.where(flags.reshape(flags.shape + (1,) * (a.ndim - flags.ndim)), a, b)


def _steps_that_count(mask: Array, x: Array) -> Array:
    """Return the mask as bools (B, T); Keras also takes (B, T, 1)."""
    valid = np.asarray(mask).astype(bool)
    if valid.ndim == 3 and x.ndim == 3 and valid.shape[2] == 1:
        valid = valid[:, :, 0]
    if valid.shape != x.shape[:2]:
        raise ValueError(f"a mask of shape {x.shape[:2]} is expected, found {valid.shape}")
    return valid


def _start(layer: LayerSpec, x: Array, first: Callable[[Array], State], context: Context) -> State:
    """Return ``initial_state``, the carried state of a stateful layer or its first one."""
    if x.ndim < 3 or x.shape[1] == 0:
        raise ValueError(f"an input (B, T, F) with T > 0 is expected, found {x.shape}")
    given, carried = context.initial_state, None
    if layer.config["stateful"] and context.states is not None:
        carried = context.states.get(context.place)
    if given is not None and carried is not None and carried_state_wins(context.generation):
        given = None if any(np.any(part) for part in carried) else given
    own = first(x[:, 0])
    state = given if given is not None else carried if carried is not None else own
    shapes = [np.shape(part) for part in own]
    if [np.shape(part) for part in state] != shapes:
        found = [np.shape(part) for part in state]
        raise ValueError(f"{len(shapes)} states of shapes {shapes} are expected, found {found}")
    return tuple(context.number(part) for part in state)


# ---- both directions ---------------------------------------------------------------------------

# forward and backward output -> output; merge_mode None keeps both
MERGES: Mapping[str | None, Callable[[Array, Array], Structure]] = {
    **{name: mode.on_arrays for name, mode in MERGE_MODES.items()},
    None: lambda forward, backward: (forward, backward),
}


def bidirectional(layer: LayerSpec, inputs: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Bidirectional.call`` and ``.compute_mask`` (Keras 2.2.4, 2.15, 3.15).

    The backward half's sequence is turned round, the forward half's never: a wrapped layer with
    ``go_backwards`` gives the whole output in reversed time. States follow: forward, backward.
    """
    forward, backward = layer.parts["forward_layer"], layer.parts["backward_layer"]
    given: tuple[State | None, State | None] = (None, None)
    if context.initial_state is not None:
        count = state_count(forward)
        given = (context.initial_state[:count], context.initial_state[count:])
    y, forward_state = _half(forward, "forward_layer", inputs, mask, given[0], context)
    y_rev, backward_state = _half(backward, "backward_layer", inputs, mask, given[1], context)
    if forward.config["return_sequences"]:
        y_rev = y_rev[:, ::-1]
    merged = MERGES[layer.config["merge_mode"]](y, y_rev)
    heads = merged if isinstance(merged, tuple) else (merged,)
    states = (*forward_state, *backward_state)
    out_mask = mask if forward.config["return_sequences"] else None
    output, masks = (*heads, *states), (*[out_mask] * len(heads), *[None] * len(states))
    return (output, masks) if len(output) > 1 else (output[0], masks[0])


def _half(
    layer: LayerSpec,
    part: str,
    inputs: Array,
    mask: Structure,
    initial_state: State | None,
    context: Context,
) -> tuple[Array, State]:
    """Run one direction; return its output, and its state if it returns one."""
    output, _ = context.inside(part).starting(initial_state).apply(layer, inputs, mask)
    return (output[0], tuple(output[1:])) if layer.config["return_state"] else (output, ())


# ---- TimeDistributed -----------------------------------------------------------------------------


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
    "LSTM": recurrent,
    "GRU": recurrent,
    "SimpleRNN": recurrent,
    "RNN": recurrent,
    "Bidirectional": bidirectional,
    "TimeDistributed": time_distributed,
}
