"""Known mistakes with the states that recurrent layers take and return, as changes to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np

from keras2torch_birnn.porting.changes import Apply, Change, LayerCall, Maker
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import Array, LayerSpec, leaves

# Which state is in each place, by its number among Keras'; None: zeros
Places: TypeAlias = tuple[int | None, ...]
T = TypeVar("T")
# Words -> what they say
Rows: TypeAlias = Mapping[str, T]


def state_changes(maker: Maker) -> Iterator[Change]:
    """Yield wrong states of a layer: initial ones, then final ones."""
    table = _rows_of(maker.layer, _PLACES)
    for words, apply in _starts_of(maker.layer):
        yield maker.change("initial state", words, apply)
    words = "each step begins with zeros: no state is carried on"
    yield maker.change("state not carried", words, _each_alone)
    for words, places in table.items():
        told = f"its initial states: {words}"
        yield maker.change("initial state", told, partial(_starting, places))
    if _half_of(maker.layer).config.get("return_state"):
        for words, places in table.items():
            told = f"the states that it returns: {words}"
            yield maker.change("final state", told, partial(_returning, places))


def _starts_of(layer: LayerSpec) -> Iterator[tuple[str, Apply]]:
    """Yield initial states that are not the given ones, or not zeros where none are given."""
    yield "its initial state is not used: it starts with zeros", partial(_starting, None)
    for words, places in _rows_of(layer, _PARTLY_USED).items():
        yield f"its initial states: {words}, zeros are there", partial(_starting, places)
    if layer.class_name == "Bidirectional":
        yield "its backward half starts with the last states of the forward half", _handing_on
    for words, values in _rows_of(layer, _CONSTANTS).items():
        yield f"it starts with {words}, Keras with zeros", partial(_starting_with, values)
    for name, activation in _ACTIVATED.items():
        yield f"{name} is applied to its initial states", partial(_activated, activation)


def _half_of(layer: LayerSpec) -> LayerSpec:
    return next(iter(layer.parts.values())) if layer.class_name == "Bidirectional" else layer


def _rows_of(layer: LayerSpec, tables: Mapping[tuple[bool, bool], Rows[T]]) -> Rows[T]:
    """Return what a table has for this layer: (Bidirectional or not, LSTM or not)."""
    both = layer.class_name == "Bidirectional"
    return tables.get((both, _half_of(layer).class_name == "LSTM"), {})


# (Bidirectional, LSTM) -> what is wrong in words, and which state of Keras is in each place.
# Keras has h, c of an LSTM, and those of the forward half first.
_PLACES: Mapping[tuple[bool, bool], Rows[Places]] = {
    (False, True): {
        "c stands for h, too": (1, 1),
        "h stands for c, too": (0, 0),
        "h and c are exchanged": (1, 0),
    },
    (True, False): {
        "those of both halves are exchanged": (1, 0),
        "that of the forward half is taken for both": (0, 0),
        "that of the backward half is taken for both": (1, 1),
    },
    (True, True): {
        "c stands for h, too": (1, 1, 3, 3),
        "c stands for h in the forward half": (1, 1, 2, 3),
        "c stands for h in the backward half": (0, 1, 3, 3),
        "h stands for c, too": (0, 0, 2, 2),
        "h and c are exchanged": (1, 0, 3, 2),
        "h and c of the forward half are exchanged": (1, 0, 2, 3),
        "h and c of the backward half are exchanged": (0, 1, 3, 2),
        "those of both halves are exchanged": (2, 3, 0, 1),
        "h alone of both halves is exchanged": (2, 1, 0, 3),
        "c alone of both halves is exchanged": (0, 3, 2, 1),
        "h of the forward half is taken for both": (0, 1, 0, 3),
        "h of the backward half is taken for both": (2, 1, 2, 3),
        "c of the forward half is taken for both": (0, 1, 2, 1),
        "c of the backward half is taken for both": (0, 3, 2, 3),
        "those of the forward half are taken for both": (0, 1, 0, 1),
        "those of the backward half are taken for both": (2, 3, 2, 3),
    },
}


# Some of the states that a layer is given are used, zeros stand for the others.
_PARTLY_USED: Mapping[tuple[bool, bool], Rows[Places]] = {
    (False, True): {"h is not used": (None, 1), "c is not used": (0, None)},
    (True, False): {
        "that of the forward half is not used": (None, 1),
        "that of the backward half is not used": (0, None),
    },
    (True, True): {
        "h is not used": (None, 1, None, 3),
        "c is not used": (0, None, 2, None),
        "those of the forward half are not used": (None, None, 2, 3),
        "those of the backward half are not used": (0, 1, None, None),
    },
}
# Constants that stand for the zeros of a layer without initial states.
_CONSTANTS: Mapping[tuple[bool, bool], Rows[tuple[float, ...]]] = {
    (False, False): {"ones": (1,)},
    (False, True): {"ones": (1, 1), "h of ones": (1, 0), "c of ones": (0, 1)},
    (True, False): {"ones": (1, 1)},
    (True, True): {"ones": (1, 1, 1, 1), "h of ones": (1, 0, 1, 0), "c of ones": (0, 1, 0, 1)},
}


# What is applied to initial states where Keras takes them as they are.
_ACTIVATED: Mapping[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda state: np.maximum(state, 0),
}


def _activated(activation: Callable[[Array], Array], call: LayerCall) -> Result:
    given = call.context.initial_state
    if given is None:
        raise ValueError("it is called without initial states")
    moved = tuple(map(activation, given))
    return call.starting(moved).run()


def _each_alone(call: LayerCall) -> Result:
    output, out_mask = call.run()
    x, shape = np.asarray(call.inputs), np.shape(output)
    if x.ndim != 3 or shape[:2] != x.shape[:2]:
        raise ValueError("it does not return its steps")
    alone, _ = call.aside()._replace(inputs=x.reshape(-1, 1, x.shape[-1]), mask=None).run()
    return np.reshape(alone, shape), out_mask


def _starting(places: Places | None, call: LayerCall) -> Result:
    """Make a change of the initial states that a layer is called with; None: there are none."""
    given = call.context.initial_state
    if given is None or (places is not None and len(places) != len(given)):
        raise ValueError("it is called without initial states")
    moved = None if places is None else tuple(_state_at(place, given) for place in places)
    return call.starting(moved).run()


def _state_at(place: int | None, states: tuple[Array, ...]) -> Array:
    return np.zeros_like(states[0]) if place is None else states[place]


def _starting_with(values: tuple[float, ...], call: LayerCall) -> Result:
    """Make a change of where a layer starts that is called without initial states."""
    if call.context.initial_state is not None:
        raise ValueError("it is called with initial states")
    shape = len(next(iter(leaves(call.inputs)))), _half_of(call.layer).config["units"]
    states = tuple(np.full(shape, value, np.float64) for value in values)
    return call.starting(states).run()


def state_form(layer: LayerSpec) -> tuple[str, str, int] | None:
    """Return what layers have in common that may take each other's states; None: it has none."""
    half = _half_of(layer)
    if half.class_name not in ("LSTM", "GRU", "SimpleRNN"):
        return None
    return layer.class_name, half.class_name, half.config["units"]


def last_states(call: LayerCall) -> tuple[Array, ...]:
    """Return the last states of a recurrent layer, those of the forward half first."""
    both = call.layer.class_name == "Bidirectional"
    parts = {name: _with_states(half) for name, half in call.layer.parts.items()}
    apart = replace(call.layer, parts=parts, config={**call.layer.config, "merge_mode": None})
    output, _ = call.aside()._replace(layer=apart if both else _with_states(call.layer)).run()
    return tuple(output[2 if both else 1 :])


def going_on(call: LayerCall) -> Result:
    """Start in each step of a TimeDistributed where its recurrent layer ended in the step before.

    A Bidirectional's halves go on each by itself.
    """
    inner, states, outputs = call.layer.parts["layer"], None, []
    run = call.context.equations[inner.class_name]
    for t in range(next(leaves(call.inputs)).shape[1]):
        x, here = call.inputs[:, t], call.mask[:, t] if np.ndim(call.mask) > 2 else None
        aside = call.context.aside().starting(states)
        outputs.append(run(inner, x, here, aside)[0])
        states = last_states(LayerCall(run, inner, x, here, aside))
    _, out_mask = call.run()
    return np.stack(outputs, axis=1), out_mask


def _with_states(layer: LayerSpec) -> LayerSpec:
    return replace(layer, config={**layer.config, "return_state": True})


def _handing_on(call: LayerCall) -> Result:
    """Start the backward half where the forward half ends."""
    ends = last_states(call)
    ends = ends[: len(ends) // 2]
    given = call.context.initial_state or tuple(np.zeros_like(state) for state in ends)
    return call.starting((*given[: len(ends)], *ends)).run()


def _returning(places: Places, call: LayerCall) -> Result:
    """Make a change of the states that a layer returns after its outputs."""
    output, out_mask = call.run()
    heads, states = output[: -len(places)], output[-len(places) :]
    return (*heads, *(_state_at(place, states) for place in places)), out_mask
