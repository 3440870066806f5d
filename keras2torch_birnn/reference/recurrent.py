"""The loop over time, with the steps of ``cells``, and Bidirectional.

Letters: B batch, T time, F features, H units (of a ConvLSTM images instead of features and units).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
)
from keras2torch_birnn.schema.merge_modes import MERGE_MODES
from keras2torch_birnn.spec import Array, LayerSpec, Structure

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


EQUATIONS: Mapping[str, Equation] = {
    "LSTM": recurrent,
    "GRU": recurrent,
    "SimpleRNN": recurrent,
    "RNN": recurrent,
    "Bidirectional": bidirectional,
}
