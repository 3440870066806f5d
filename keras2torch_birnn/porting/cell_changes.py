"""Known mistakes inside one step of a cell, and in what the mask does to its states.

B batch, F features, H units. These replace the loop over time itself, so other changes of the same
layer go around them (``Change.rank``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np

from keras2torch_birnn.porting.changes import Apply
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.cells import State, Step, first_state, step_of
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.reference.recurrent import loop
from keras2torch_birnn.spec import Array, LayerSpec, Structure

# Output and states
Taken: TypeAlias = tuple[Array, State]
# The steps that count (B, 1), what the step gives, and what there was before it -> what is kept
Hold: TypeAlias = Callable[[Array, Taken, Taken], Taken]
# kind, words, what it does
Row: TypeAlias = tuple[str, str, Apply]


def hold_changes(layer: LayerSpec) -> Iterator[Row]:
    """Yield wrong ways to hold the states of an LSTM, GRU or SimpleRNN at padded steps."""
    for words, hold in {**(_OF_TWO_STATES if layer.class_name == "LSTM" else {}), **_HOLDS}.items():
        yield "held state", words, _held(hold)


def inner_activation_changes(
    layer: LayerSpec, names: tuple[str, ...], show: Callable[[object], str]
) -> Iterator[Row]:
    """Yield an LSTM's other activation at one of its two places: at the new values, or at c.

    show: names an activation for people.
    """
    if layer.class_name != "LSTM":
        return
    own = layer.config["activation"]
    for name in names:
        if name == own:
            continue
        has = f"Keras has {show(own)} there, too"
        at_c = _stepped(partial(_lstm, candidate=own, output=name))
        yield "activation", f"{show(name)} of c before the output gate, {has}", at_c
        at_new = _stepped(partial(_lstm, candidate=name, output=own))
        yield "activation", f"{show(name)} of the new values that enter c, {has}", at_new


# ---- the states at padded steps ------------------------------------------------------------------


def _keep(valid: Array, new: Array, old: Array) -> Array:
    kept: Array = np.where(valid, new, old)
    return kept


def _hold_h_alone(valid: Array, new: Taken, old: Taken) -> Taken:
    h = _keep(valid, new[1][0], old[1][0])
    return h, (h, new[1][1])


def _hold_c_alone(valid: Array, new: Taken, old: Taken) -> Taken:
    return _keep(valid, new[0], old[0]), (new[1][0], _keep(valid, new[1][1], old[1][1]))


def _hold_output_alone(valid: Array, new: Taken, old: Taken) -> Taken:
    return _keep(valid, new[0], old[0]), new[1]


def _zero(valid: Array, new: Taken, _: Taken) -> Taken:
    return new[0] * valid, tuple(state * valid for state in new[1])


_OF_TWO_STATES: Mapping[str, Hold] = {
    "the cell state c is not held at padded steps, h alone is": _hold_h_alone,
    "h is not held at padded steps, the cell state c alone is": _hold_c_alone,
}
_HOLDS: Mapping[str, Hold] = {
    "the states are zero after padded steps, Keras holds them": _zero,
    "the states go on at padded steps, the output alone is held": _hold_output_alone,
}


def _held(hold: Hold) -> Apply:
    """Loop with another rule for padded steps: the last output is what is kept at the last step."""

    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        if not isinstance(mask, np.ndarray) or layer.config["stateful"]:
            raise ValueError("no step is padded")
        x = context.number(inputs)
        one = step_of(layer, context)
        # The mask enters as one more feature, and the output that is kept as one more state.
        flagged = np.concatenate([x, mask.astype(x.dtype).reshape(*x.shape[:2], 1)], axis=-1)

        def step(x: Array, state: State) -> Taken:
            *before, last = state
            kept, states = hold(x[:, -1:] > 0, one(x[:, :-1], tuple(before)), (last, (*before,)))
            return kept, (*states, kept)

        def first(x: Array) -> State:
            states = first_state(layer, context, x)
            return (*states, np.zeros_like(states[0]))

        if (given := context.initial_state) is not None:
            context = context.starting((*given, np.zeros_like(given[0])))
        output, _ = loop(layer, flagged, None, context, step, first)
        _, out_mask = equation(layer, inputs, mask, context.aside())
        return (output[:-1] if layer.config["return_state"] else output), out_mask

    return apply


# ---- the step itself -----------------------------------------------------------------------------


def _stepped(make: Callable[[LayerSpec, Context], Step]) -> Apply:
    """Loop with another step."""

    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        start = partial(first_state, layer, context)
        return loop(layer, inputs, mask, context, make(layer, context), start)

    return apply


def _lstm(layer: LayerSpec, context: Context, *, candidate: str, output: str) -> Step:
    """Make the step of an LSTM with one activation for the new values, and one for c."""
    w, u = context.weight(layer, "kernel"), context.weight(layer, "recurrent_kernel")
    b = context.weight(layer, "bias") if layer.config["use_bias"] else np.zeros_like(w[0])
    gate = partial(activate, layer.config["recurrent_activation"])

    def step(x: Array, state: State) -> Taken:
        i, f, new, o = np.split(x @ w + state[0] @ u + b, 4, axis=-1)
        c = gate(f) * state[1] + gate(i) * activate(candidate, new)
        h = gate(o) * activate(output, c)
        return h, (h, c)

    return step
