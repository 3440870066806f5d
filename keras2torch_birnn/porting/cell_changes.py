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


def formula_changes(layer: LayerSpec) -> Iterator[Row]:
    """Yield steps of an LSTM or a GRU by another formula."""
    if layer.class_name == "LSTM":
        words = "h is the activation of o c, Keras multiplies o by the activation of c"
        late = partial(_lstm, output="linear", last=layer.config["activation"])
        yield "formula", words, _stepped(partial(late, candidate=layer.config["activation"]))
    if layer.class_name != "GRU":
        return
    for words, combine in _NEW_STATES.items():
        yield "formula", f"{words}, Keras has z h + (1 - z) n", _stepped(partial(_gru, combine))
    if layer.config["reset_after"]:
        words = "the reset gate multiplies what n reads of the input, too"
        yield "formula", words, _stepped(partial(_gru, _usual_state, resets_input=True))


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


def _lstm(
    layer: LayerSpec, context: Context, *, candidate: str, output: str, last: str = "linear"
) -> Step:
    """Make the step of an LSTM with activations for the new values, for c, and for o c."""
    w, u = context.weight(layer, "kernel"), context.weight(layer, "recurrent_kernel")
    b = context.weight(layer, "bias") if layer.config["use_bias"] else np.zeros_like(w[0])
    gate = partial(activate, layer.config["recurrent_activation"])

    def step(x: Array, state: State) -> Taken:
        i, f, new, o = np.split(x @ w + state[0] @ u + b, 4, axis=-1)
        c = gate(f) * state[1] + gate(i) * activate(candidate, new)
        h = activate(last, gate(o) * activate(output, c))
        return h, (h, c)

    return step


def _usual_state(z: Array, h: Array, n: Array) -> Array:
    state: Array = z * h + (1 - z) * n
    return state


# The update gate, the last state and n -> the new state
_NEW_STATES: Mapping[str, Callable[[Array, Array, Array], Array]] = {
    "the new state is z h + n": lambda z, h, n: z * h + n,
    "the new state is h + (1 - z) n": lambda z, h, n: h + (1 - z) * n,
    "the new state is h + z n": lambda z, h, n: h + z * n,
    "the new state is z h + z n": lambda z, h, n: z * (h + n),
}


def _gru(
    combine: Callable[[Array, Array, Array], Array],
    layer: LayerSpec,
    context: Context,
    *,
    resets_input: bool = False,
) -> Step:
    """Make the step of a GRU with another new state, or with r applied to all that n reads."""
    w, u = context.weight(layer, "kernel"), context.weight(layer, "recurrent_kernel")
    after, units = layer.config["reset_after"], layer.config["units"]
    bias = context.weight(layer, "bias") if layer.config["use_bias"] else np.zeros_like(w[0])
    b, d = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
    gate = partial(activate, layer.config["recurrent_activation"])

    def step(x: Array, state: State) -> Taken:
        (h,) = state
        read, kept = x @ w + b, h @ u + d
        z = gate(read[:, :units] + kept[:, :units])
        r = gate(read[:, units:-units] + kept[:, units:-units])
        new, old = read[:, -units:], kept[:, -units:] if after else (r * h) @ u[:, -units:]
        total = r * (new + old) if resets_input else new + (r * old if after else old)
        h = combine(z, h, activate(layer.config["activation"], total))
        return h, (h,)

    return step
