"""Known mistakes inside one step of a cell, and in what the mask does to its states.

B batch, F features, H units. These replace the loop over time itself, so other changes of the same
layer go around them (``Change.rank``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from keras2torch_birnn.porting.changes import INSIDE, Apply, Change, LayerCall, Maker
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.cells import State, Step, first_state, step_of
from keras2torch_birnn.reference.context import Context, Result
from keras2torch_birnn.reference.recurrent import loop
from keras2torch_birnn.spec import Array, LayerSpec

# Output and states
Taken: TypeAlias = tuple[Array, State]
# The steps that count (B, 1), what the step gives, and what there was before it -> what is kept
Hold: TypeAlias = Callable[[Array, Taken, Taken], Taken]
# kind, words, what it does
Row: TypeAlias = tuple[str, str, Apply]


# Activations that are tried
ACTIVATIONS = (
    "tanh",
    "sigmoid",
    "relu",
    "hard_sigmoid_0.2",
    "hard_sigmoid_1/6",
    "linear",
    "hard_tanh",
    "softsign",
    "elu",
    "relu6",
    "silu",
    "gelu",
    "selu",
    "softplus",
)
_SHOWN = {
    "hard_sigmoid_0.2": "hard_sigmoid with slope 0.2 (Keras 1 and 2)",
    "hard_sigmoid_1/6": "hard_sigmoid with slope 1/6 (Keras 3, torch)",
    "linear": "no activation",
}


def show_activation(value: object) -> str:
    """Name an activation for people."""
    if isinstance(value, dict):
        options = ", ".join(f"{key} {found}" for key, found in value.items() if key != "name")
        return f"{value['name']} ({options})" if options else str(value["name"])
    return _SHOWN.get(str(value), str(value))


def inner_changes(maker: Maker) -> Iterator[Change]:
    """Yield mistakes inside the loop."""
    for make in (_hold_changes, _inner_activation_changes, _formula_changes):
        for row in make(maker.layer):
            yield maker.change(*row, INSIDE)


def _hold_changes(layer: LayerSpec) -> Iterator[Row]:
    """Yield wrong ways to hold the states of an LSTM, GRU or SimpleRNN at padded steps."""
    for words, hold in {**(_OF_TWO_STATES if layer.class_name == "LSTM" else {}), **_HOLDS}.items():
        yield "held state", words, partial(_held, hold)


def _inner_activation_changes(layer: LayerSpec) -> Iterator[Row]:
    """Yield an LSTM's other activation at one of its two places: at the new values, or at c."""
    own = layer.config["activation"]
    for name in ACTIVATIONS if layer.class_name == "LSTM" else ():
        if name != own:
            has = f"Keras has {show_activation(own)} there, too"
            words = f"{show_activation(name)} of c before the output gate, {has}"
            yield "activation", words, partial(_stepped, partial(_lstm, output=name))
            words = f"{show_activation(name)} of the new values that enter c, {has}"
            yield "activation", words, partial(_stepped, partial(_lstm, candidate=name))


def _formula_changes(layer: LayerSpec) -> Iterator[Row]:
    """Yield steps of an LSTM or a GRU by another formula, and of any cell by another state."""
    if layer.class_name == "LSTM":
        words = "h is the activation of o c, Keras multiplies o by the activation of c"
        late = partial(_lstm, output="linear", last=layer.config["activation"])
        yield "formula", words, partial(_stepped, late)
        for words, more in _LSTM_STEPS.items():
            yield "formula", words, partial(_stepped, partial(_lstm, **more))
    for words, keep in _KEPT_STATES.items():
        words = f"{words}, Keras does not do that"
        yield "formula", words, partial(_stepped, partial(_kept_by, keep))
    for name in ("relu", "tanh"):
        words = f"{name} follows what it reads of the input (x W + b), which Keras does not have"
        yield "formula", words, partial(_projected, name)
    for words, (gate, factor) in _SLOPES.items() if layer.class_name != "SimpleRNN" else ():
        words = f"{words} at the gates, which Keras does not have"
        yield "activation", words, partial(_sloped, gate, factor)
    for letter in {"LSTM": "ifo", "GRU": "zr"}.get(layer.class_name, ""):
        step = _lstm if layer.class_name == "LSTM" else partial(_gru, _usual_state)
        for name in ("tanh", "relu", "linear", "hard_sigmoid_0.2", "hard_sigmoid_1/6", "sigmoid"):
            if name != layer.config["recurrent_activation"]:
                words = f"{name} at the gate {letter} alone, which Keras does not have"
                yield "activation", words, partial(_stepped, partial(step, gates={letter: name}))
    if layer.class_name != "GRU":
        return
    for words, combine in _NEW_STATES.items():
        words = f"{words}, Keras has z h + (1 - z) n"
        yield "formula", words, partial(_stepped, partial(_gru, combine))
    if layer.config["reset_after"]:
        words = "the reset gate multiplies what n reads of the input, too"
        yield "formula", words, partial(_stepped, partial(_gru, _usual_state, resets_input=True))


# What differs in the step of an LSTM -> the arguments of ``_lstm``
_LSTM_STEPS: Mapping[str, Mapping[str, Any]] = {
    "its gates read the cell state c, too (peepholes)": {"peeps": 1.0},
    "the recurrent kernel multiplies the cell state c, in Keras h": {"reads": 1},
}
# The step's output and states, and the states before it -> what is kept
Keep: TypeAlias = Callable[[Taken, State], Taken]


def _fading(factor: float, carried: bool, new: Taken, _: State) -> Taken:
    states = tuple(factor * state for state in new[1])
    return (new[0] if carried else factor * new[0]), states


def _mixed(share: float, new: Taken, old: State) -> Taken:
    """Keep a share of the last states, as zoneout does."""
    pairs = zip(old, new[1], strict=True)
    states = tuple(share * before + (1 - share) * now for before, now in pairs)
    return states[0], states


def _added(new: Taken, old: State) -> Taken:
    h = new[1][0] + old[0]
    return h, (h, *new[1][1:])


_KEPT_STATES: Mapping[str, Keep] = {
    **{
        f"its states{also} are multiplied by {factor:g} at each step": partial(
            _fading, factor, carried
        )
        for carried, also in ((True, ", as the next step reads them,"), (False, " and outputs"))
        for factor in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
    },
    **{
        f"{share:g} of the last states is kept at each step": partial(_mixed, share)
        for share in (0.1, 0.2, 0.3, 0.5, 0.9)
    },
    "the last h is added to the new one": _added,
}


def _kept_by(keep: Keep, layer: LayerSpec, context: Context) -> Step:
    own = step_of(layer, context)
    return lambda x, state: keep(own(x, state), state)


def _projected(name: str, call: LayerCall) -> Result:
    """Apply an activation to what the cell reads of its input; it stands for the input then."""
    w = call.context.weight(call.layer, "kernel")
    weights = {"kernel": np.eye(w.shape[1])}
    x = call.context.number(np.asarray(call.inputs)) @ w
    if call.layer.config["use_bias"]:
        bias = np.array(call.context.weight(call.layer, "bias"))
        first = bias[0] if bias.ndim == 2 else bias
        x = x + first
        first[...] = 0
        weights["bias"] = bias
    return call.weighted(weights)._replace(inputs=activate(name, x)).run()


# The activation of the gates (None: their own), and by what they multiply what they read
_SLOPES: Mapping[str, tuple[str | None, float]] = {
    **{
        f"hard_sigmoid with slope {slope:g}": ("hard_sigmoid_0.2", 5 * slope)
        for slope in (0.25, 0.5, 0.1, 1.0)
    },
    "what is read is doubled": (None, 2.0),
    "what is read is halved": (None, 0.5),
}


def _sloped(name: str | None, factor: float, call: LayerCall) -> Result:
    """Scale what the gates read, all but the third part: it is that of the new values."""
    units, config = call.layer.config["units"], call.layer.config
    weights = {key: np.array(array, np.float64) for key, array in call.layer.weights.items()}
    for array in weights.values():
        array[..., : 2 * units] *= factor
        array[..., 3 * units :] *= factor
    gates = {"recurrent_activation": name or config["recurrent_activation"]}
    return call.weighted(weights).configured(**gates).run()


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


def _held(hold: Hold, call: LayerCall) -> Result:
    """Loop with another rule for padded steps: the last output is what is kept at the last step."""
    if not isinstance(call.mask, np.ndarray) or call.layer.config["stateful"]:
        raise ValueError("no step is padded")
    x = call.context.number(call.inputs)
    one = step_of(call.layer, call.context)
    # The mask enters as one more feature, and the output that is kept as one more state.
    flagged = np.concatenate([x, call.mask.astype(x.dtype).reshape(*x.shape[:2], 1)], axis=-1)

    def step(x: Array, state: State) -> Taken:
        *before, last = state
        kept, states = hold(x[:, -1:] > 0, one(x[:, :-1], tuple(before)), (last, (*before,)))
        return kept, (*states, kept)

    def first(x: Array) -> State:
        states = first_state(call.layer, call.context, x)
        return (*states, np.zeros_like(states[0]))

    given = call.context.initial_state
    more = None if given is None else (*given, np.zeros_like(given[0]))
    output, _ = loop(call.layer, flagged, None, call.context.starting(more), step, first)
    _, out_mask = call.aside().run()
    return (output[:-1] if call.layer.config["return_state"] else output), out_mask


# ---- the step itself -----------------------------------------------------------------------------


def _stepped(make: Callable[[LayerSpec, Context], Step], call: LayerCall) -> Result:
    """Loop with another step."""
    start = partial(first_state, call.layer, call.context)
    return loop(
        call.layer, call.inputs, call.mask, call.context, make(call.layer, call.context), start
    )


def _gates_of(layer: LayerSpec, other: Mapping[str, str] | None) -> Callable[[str, Array], Array]:
    """Return the activation of each gate, given its letter; other: of some, in place of Keras'."""
    usual = layer.config["recurrent_activation"]
    return lambda letter, x: activate((other or {}).get(letter, usual), x)


def _lstm(
    layer: LayerSpec,
    context: Context,
    *,
    candidate: str | None = None,
    output: str | None = None,
    last: str = "linear",
    peeps: float = 0.0,
    reads: int = 0,
    gates: Mapping[str, str] | None = None,
) -> Step:
    """Make the step of an LSTM with activations for the new values, for c, and for o c.

    peeps: weight of c in the gates; reads: the state that the recurrent kernel multiplies; gates:
    activations of single ones.
    """
    w, u = context.weight(layer, "kernel"), context.weight(layer, "recurrent_kernel")
    b = context.weight(layer, "bias") if layer.config["use_bias"] else np.zeros_like(w[0])
    gate = _gates_of(layer, gates)
    own = layer.config["activation"]

    def step(x: Array, state: State) -> Taken:
        i, f, new, o = np.split(x @ w + state[reads] @ u + b, 4, axis=-1)
        old = state[1]
        c = gate("f", f + peeps * old) * old
        c = c + gate("i", i + peeps * old) * activate(candidate or own, new)
        h = activate(last, gate("o", o + peeps * c) * activate(output or own, c))
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
    "the new state is z h - (1 - z) n": lambda z, h, n: z * h - (1 - z) * n,
    "the new state is z h + z n": lambda z, h, n: z * (h + n),
}


def _gru(
    combine: Callable[[Array, Array, Array], Array],
    layer: LayerSpec,
    context: Context,
    *,
    resets_input: bool = False,
    gates: Mapping[str, str] | None = None,
) -> Step:
    """Make the step of a GRU with another new state, or with r applied to all that n reads."""
    w, u = context.weight(layer, "kernel"), context.weight(layer, "recurrent_kernel")
    after, units = layer.config["reset_after"], layer.config["units"]
    bias = context.weight(layer, "bias") if layer.config["use_bias"] else np.zeros_like(w[0])
    b, d = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
    gate = _gates_of(layer, gates)

    def step(x: Array, state: State) -> Taken:
        (h,) = state
        read, kept = x @ w + b, h @ u + d
        z = gate("z", read[:, :units] + kept[:, :units])
        r = gate("r", read[:, units:-units] + kept[:, units:-units])
        new, old = read[:, -units:], kept[:, -units:] if after else (r * h) @ u[:, -units:]
        total = r * (new + old) if resets_input else new + (r * old if after else old)
        h = combine(z, h, activate(layer.config["activation"], total))
        return h, (h,)

    return step
