"""Usual mistakes in ports of recurrent layers and of Bidirectional. B batch, T time, H units.

A rewrite that does not fit a layer fails, and one that changes nothing is never told: the tables
ask no layer whether they apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from keras2torch_birnn.porting.gates import Order, gate_count, orders, written
from keras2torch_birnn.porting.layer_call import (
    LayerCall,
    Rewrite,
    Weights,
    activation_rewrites,
    configured,
    followed_by,
    masked_by,
    to_end,
    valid_steps,
    weighted,
    weighted_one,
)
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.cells import State, first_state, step_of
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.reference.recurrent import MERGES, loop
from keras2torch_birnn.rnn.parameters import reorder
from keras2torch_birnn.schema.merge_modes import MERGE_MODES
from keras2torch_birnn.spec import Array, LayerSpec, Structure

CELLS = ("LSTM", "GRU", "SimpleRNN")
# All steps (B, T, H) in time, zero where nothing counts, and those that count -> (B, H)
Pick: TypeAlias = Callable[[Array, Array], Array]


def one_way_rewrites(layer: LayerSpec) -> Iterator[Rewrite]:
    """Yield the mistakes of a layer of one direction, or of a half of a Bidirectional."""
    yield from MASKS
    yield from _REVERSED if layer.config["go_backwards"] else ()
    yield from _step_rewrites(layer)
    yield from _STATES
    turned = configured(go_backwards=not layer.config["go_backwards"])
    words = f"it reads the steps {'forward' if layer.config['go_backwards'] else 'backward'}"
    yield Rewrite("direction", words, turned)
    if layer.config["return_sequences"]:
        kept = followed_by(_turn, turned)
        yield Rewrite("direction", f"{words}, and gives each output at its own step", kept)
        if layer.config["go_backwards"]:
            words = "its output is not turned round in time"
            yield Rewrite("direction", words, followed_by(_turn))
    else:
        for words, pick in _PICKS.items():
            for rule in ("zeros", "previous_output"):
                yield Rewrite("last state", words, partial(_picked, pick, rule))
        yield Rewrite("last state", *_END_OF_ARRAY)
        yield Rewrite("last state", *_CELL_STATE)
    words = "batch and time are exchanged (batch_first): it runs over the rows of the batch"
    yield Rewrite("batch_first", words, _swapped)


def _turn(y: Array) -> Array:
    return y[:, ::-1]


# ---- masks and states ----------------------------------------------------------------------------


def _with_semantics(rule: str, call: LayerCall) -> LayerCall:
    semantics = {**call.layer.semantics, "masked_output": rule}
    return call._replace(layer=replace(call.layer, semantics=semantics))


def _packed_with_padding(call: LayerCall) -> Result:
    """Flip whole rows whose steps that count were moved to the front; read as many of them."""
    if not isinstance(call.mask, np.ndarray) or call.layer.config["return_sequences"]:
        raise ValueError("no step is padded")
    front = np.argsort(~call.mask.astype(bool), axis=1, kind="stable")
    moved = np.take_along_axis(call.inputs, front[..., np.newaxis], axis=1)
    lengths = np.take_along_axis(call.mask, front, axis=1)
    return call._replace(inputs=moved, mask=lengths[:, ::-1]).run()


def _reversed_with_padding(rule: str, call: LayerCall) -> Result:
    """Flip whole rows, but not the mask: the first steps are padding, and count."""
    return masked_by(_turn)(_with_semantics(rule, call))


def _turned_with_padding(call: LayerCall) -> Result:
    """Flip whole rows of the output, whose steps were put where they count."""
    output, out_mask = call.run()
    turned = np.zeros_like(output)
    for row, steps in enumerate(valid_steps(call.mask, output)):
        turned[row, steps[::-1]] = output[row, ::-1][steps]
    return turned[:, ::-1], out_mask


def _starting(turn: Callable[[Sequence[Array]], Sequence[Array]], call: LayerCall) -> Result:
    given = call.context.initial_state
    if given is None:
        raise ValueError("it starts with zeros")
    return call.starting(tuple(turn(given))).run()


def _exchange_h_and_c(states: Sequence[Array]) -> Sequence[Array]:
    return [part for n in range(0, len(states), 2) for part in states[n : n + 2][::-1]]


MASKS = (
    Rewrite(
        "mask missing", "the mask is not used: padding is read as data", masked_by(lambda _: None)
    ),
    Rewrite("padding side", "padding is taken to be at the end of every row", masked_by(to_end)),
)
_FLIPPED = "the reversal of a row includes its padding, which is then read as data"
_REVERSED = (
    Rewrite("reversed padding", _FLIPPED, _packed_with_padding),
    Rewrite("reversed padding", _FLIPPED, partial(_reversed_with_padding, "zeros")),
    Rewrite("reversed padding", _FLIPPED, partial(_reversed_with_padding, "previous_output")),
    Rewrite(
        "reversed padding",
        "its output is turned round with the padding, so that it comes too late",
        _turned_with_padding,
    ),
)
_STATES = tuple(
    Rewrite("initial state", f"its initial states: {words}", partial(_starting, turn))
    for words, turn in (
        ("they are not used, it starts with zeros", lambda s: [np.zeros_like(one) for one in s]),
        ("h and c are exchanged", _exchange_h_and_c),
    )
)


# ---- one step: the cell's formula and its weights ------------------------------------------------


def _step_rewrites(layer: LayerSpec) -> Iterator[Rewrite]:
    for option, where in (("recurrent_activation", "at the gates"), ("activation", "in the cell")):
        if option in layer.config:
            yield from activation_rewrites(option, layer.config[option], where)
    if layer.class_name == "GRU":
        yield Rewrite("z", "z and 1 - z are exchanged: Keras has h = z h + (1 - z) n", _NEGATED_Z)
        if layer.config["reset_after"]:
            words = "the reset gate is applied before the recurrent product, Keras applies it after"
            yield Rewrite("reset", words, _reset_before)
            yield from _GRU_BIASES
        else:
            words = "the reset gate is applied after the recurrent product (as nn.GRU does), Keras "
            yield Rewrite("reset", f"{words}applies it before (reset_after=False)", _reset_after)
    yield from BIASES
    if layer.class_name == "LSTM":
        own = layer.config["activation"]
        for where, inner, outer in (("c", own, "linear"), ("g", "linear", own)):
            one_missing = partial(_activated_once, inner, outer)
            yield Rewrite("activation", f"no activation of {where}, Keras has {own}", one_missing)
        words = "1 is added to the bias of f, which the file's bias already holds"
        yield Rewrite("forget bias", words, weighted_one("bias", _raise_forget))
    usual = tuple(range(gate_count(layer.class_name)))
    for some in (("kernel", "recurrent_kernel", "bias"), ("kernel",), ("recurrent_kernel",)):
        which = "" if len(some) > 1 else f" ({some[0].replace('_', ' ')})"
        for order in orders(len(usual)):
            words = f"gates in order {written(layer, order)} instead of {written(layer, usual)}"
            yield Rewrite("gate order", f"{words}{which}", weighted(partial(_order, some, order)))


def _order(some: Sequence[str], order: Order, weights: Weights) -> Weights:
    return {name: reorder(weights[name], order, -1) for name in some if name in weights}


def _negate_z(array: Array) -> Array:
    """Negate what goes into z: 1 - sigmoid(a) is sigmoid(-a), and so for hard_sigmoid."""
    z, r, h = np.split(array, 3, axis=-1)
    return np.concatenate([-z, r, h], axis=-1)


def _reset_before(call: LayerCall) -> Result:
    weights = {name: np.asarray(array) for name, array in call.layer.weights.items()}
    if "bias" in weights:
        weights["bias"] = weights["bias"].sum(axis=0)
    return call.weighted(weights).configured(reset_after=False).run()


def _reset_after(call: LayerCall) -> Result:
    weights = {name: np.asarray(array) for name, array in call.layer.weights.items()}
    if "bias" in weights:
        weights["bias"] = np.stack([weights["bias"], np.zeros_like(weights["bias"])])
    return call.weighted(weights).configured(reset_after=True).run()


def _activated_once(inner: Any, outer: Any, call: LayerCall) -> Result:
    """Compute an LSTM with one activation of g, what is written to c, and another one of c."""
    usual = call.configured(activation=inner)
    step, first = step_of(usual.layer, call.context), partial(first_state, call.layer, call.context)

    def changed(x: Array, state: State) -> tuple[Array, State]:
        h, (_, c) = step(x, state)
        h = h / activate(inner, c) * activate(outer, c)
        return h, (h, c)

    return loop(call.layer, call.inputs, call.mask, call.context, changed, first)


def _raise_forget(bias: Array) -> Array:
    i, f, c, o = np.split(bias, 4, axis=-1)
    return np.concatenate([i, f + 1, c, o], axis=-1)


_NEGATED_Z = weighted(lambda weights: {name: _negate_z(one) for name, one in weights.items()})
BIASES = (
    Rewrite("bias missing", "the bias is not added", weighted_one("bias", np.zeros_like)),
    Rewrite("bias doubled", "the bias is added twice", weighted_one("bias", lambda bias: 2 * bias)),
)
_GRU_BIASES = (
    Rewrite(
        "biases joined",
        "both biases are one: the recurrent bias of n belongs inside the reset gate",
        weighted_one("bias", lambda bias: np.stack([bias.sum(axis=0), np.zeros_like(bias[0])])),
    ),
    *(
        Rewrite(
            "bias missing",
            f"the {name} bias is missing: Keras' bias has a row for each",
            weighted_one("bias", partial(np.multiply, np.array(kept)[:, np.newaxis])),
        )
        for name, kept in (("input", (0, 1)), ("recurrent", (1, 0)))
    ),
)


# ---- which steps are taken -----------------------------------------------------------------------


def _in_time(call: LayerCall, rule: str = "zeros") -> Array:
    """Return all steps of a layer in the order of time; where padded, zeros (as torch does)."""
    config = {**call.layer.config, "return_sequences": True, "return_state": False}
    every = _with_semantics(rule, call._replace(layer=replace(call.layer, config=config)))
    output, _ = every.run()
    return np.asarray(_turn(output) if config["go_backwards"] else output)


def _picked(pick: Pick, rule: str, call: LayerCall) -> Result:
    steps = _in_time(call, rule)
    picked = pick(steps, valid_steps(call.mask, steps))
    return followed_by(lambda _: picked)(call)


def _end_of_array(call: LayerCall) -> Result:
    end = 0 if call.layer.config["go_backwards"] else -1
    return _picked(lambda y, _: y[:, end], "zeros", call)


def _cell_state(call: LayerCall) -> Result:
    output, _ = call.configured(return_state=True).run()
    return followed_by(lambda _: output[2])(call)


def _swapped(call: LayerCall) -> Result:
    """Run over the rows of the batch; both directions give their outputs in the order of rows."""
    inputs = np.swapaxes(call.inputs, 0, 1)
    output = np.swapaxes(_in_time(call._replace(inputs=inputs, mask=None)), 0, 1)
    if not call.layer.config["return_sequences"]:
        return output[:, -1], None
    return _turn(output) if call.layer.config["go_backwards"] else output, call.mask


def _last_valid(y: Array, valid: Array) -> Array:
    last = valid.shape[1] - 1 - valid[:, ::-1].argmax(axis=1)
    found: Array = y[np.arange(len(y)), last]
    return found


_PICKS: Mapping[str, Pick] = {
    "the last step of the array is taken (out[:, -1]); a backward half ends at the first": (
        lambda y, _: y[:, -1]
    ),
    "the first step of the array is taken (out[:, 0]); a forward half ends at the last": (
        lambda y, _: y[:, 0]
    ),
    "the last step that counts is taken; a backward half ends at the first": _last_valid,
    "the mean over the steps is taken where Keras takes the last": lambda y, _: y.mean(axis=1),
    "the maximum over the steps is taken where Keras takes the last": lambda y, _: y.max(axis=1),
}
_END_OF_ARRAY = "the end of the array is taken, also where it is padding", _end_of_array
_CELL_STATE = "the cell state c is taken where Keras takes h", _cell_state


# ---- both directions -----------------------------------------------------------------------------


def bidirectional_rewrites(layer: LayerSpec, place: str) -> Iterator[Rewrite]:
    """Yield the mistakes of a Bidirectional: those of its halves, and what becomes of them."""
    keys = tuple((f"{place}/{name}", half.class_name) for name, half in layer.parts.items())
    if any(name not in CELLS for _, name in keys):
        return
    mode = layer.config["merge_mode"]
    for name in MERGE_MODES if mode is not None else ():
        words = f"the halves are merged by {name}, Keras has {mode}"
        yield Rewrite("merge mode", words, configured(merge_mode=name))
    yield from _MERGES
    yield from _STATES
    forward, backward = layer.parts.values()
    both = {one.words for one in one_way_rewrites(forward)}
    for one in one_way_rewrites(backward):
        if one.words in both:
            yield one._replace(keys=keys)
    for sources, kind, words in (
        ((1, 0), "directions exchanged", "the weights of both halves are exchanged"),
        ((0, 0), "halves alike", "both halves use the weights of the forward half"),
        ((1, 1), "halves alike", "both halves use the weights of the backward half"),
    ):
        yield Rewrite(kind, words, partial(_with_halves, sources))


def _with_halves(sources: tuple[int, int], call: LayerCall) -> Result:
    """Give both halves the weights of these ones."""
    halves = list(call.layer.parts.values())
    parts = {
        part: replace(own, weights=halves[source].weights)
        for (part, own), source in zip(call.layer.parts.items(), sources, strict=True)
    }
    return call.with_parts(parts).run()


def _merged(merge: Callable[[Array, Array], Array], call: LayerCall) -> Result:
    """Change what becomes of both halves' outputs, as Keras has them before merging."""
    if call.layer.config["merge_mode"] is None:
        raise ValueError("the halves are not merged")
    halves, _ = call.configured(merge_mode=None).run()
    return followed_by(lambda _: merge(*halves[:2]))(call)


def _twice(half: int, call: LayerCall) -> Result:
    merge = MERGES[call.layer.config["merge_mode"]]

    def merged(*halves: Array) -> Structure:
        return merge(halves[half], halves[half])

    return _merged(merged, call)


_MERGES = (
    *(
        Rewrite(kind, words, partial(_merged, merge))
        for kind, words, merge in (
            (
                "merge order",
                "the backward half comes first in the concatenation",
                lambda f, b: np.concatenate([b, f], axis=-1),
            ),
            (
                "merge order",
                "units of both halves take turns, Keras has all of the forward half first",
                lambda f, b: np.stack([f, b], axis=-1).reshape(*f.shape[:-1], -1),
            ),
            (
                "last state",
                "h_n (2, B, H) is viewed as (B, 2 H), which mixes rows of the batch",
                lambda f, b: np.stack([f, b]).reshape(len(f), -1),
            ),
            ("half left out", "the backward half is left out", lambda f, _: f),
            ("half left out", "the forward half is left out", lambda _, b: b),
        )
    ),
    *(
        Rewrite("half taken twice", f"{words} is taken twice", partial(_twice, half))
        for half, words in enumerate(("the forward half", "the backward half"))
    ),
)
