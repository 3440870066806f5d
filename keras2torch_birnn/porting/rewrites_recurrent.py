"""Usual mistakes in ports of recurrent layers and of Bidirectional. B batch, T time, H units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from keras2torch_birnn.merge_modes import MERGE_MODES
from keras2torch_birnn.porting.gates import Order, gate_count, orders, written
from keras2torch_birnn.porting.layer_call import (
    Apply,
    LayerCall,
    Rewrite,
    Weights,
    configured,
    followed_by,
    masked_by,
    to_end,
    valid_steps,
    weighted,
    weighted_one,
)
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.reference.recurrent import MERGES
from keras2torch_birnn.rnn.parameters import reorder
from keras2torch_birnn.spec import Array, LayerSpec, Structure

CELLS = ("LSTM", "GRU", "SimpleRNN")
_ACTIVATIONS: Mapping[str, str] = {
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "relu": "relu",
    "hard_sigmoid_0.2": "Keras 2's hard_sigmoid, clip(0.2 x + 0.5, 0, 1)",
    "hard_sigmoid_1/6": "torch's hardsigmoid, clip(x / 6 + 0.5, 0, 1)",
    "linear": "linear",
}
_BATCH_FIRST = "batch and time are exchanged (batch_first): it runs over the rows of the batch"
_NO_MASK = "the mask is not used: padding is read as data"
# All steps (B, T, H) in time, zero where nothing counts, and those that count -> (B, H)
Pick: TypeAlias = Callable[[Array, Array], Array]
# The layer's merge and both halves' outputs -> the output
Both: TypeAlias = Callable[[Callable[[Array, Array], Structure], Array, Array], Structure]


# ---- one direction -------------------------------------------------------------------------------


def one_way_rewrites(layer: LayerSpec, *, is_half: bool = False) -> Iterator[Rewrite]:
    """Yield the mistakes of a layer of one direction, or of a half of a Bidirectional."""
    yield from _mask_rewrites(layer)
    yield from _step_rewrites(layer)
    yield from _state_rewrites()
    if layer.config["return_sequences"]:
        turned = followed_by(lambda y: y[:, ::-1])
        words = "its output is not turned round in time" if is_half else "its steps come reversed"
        if not is_half or layer.config["go_backwards"]:
            yield Rewrite("direction", words, turned)
        yield Rewrite("batch_first", _BATCH_FIRST, partial(_swapped, None))
    else:
        yield Rewrite("batch_first", _BATCH_FIRST, partial(_swapped, lambda y: y[:, -1]))
        for words, pick in _PICKS.items():
            yield Rewrite("last state", words, partial(_picked, pick))
        if layer.class_name == "LSTM":
            words = "the cell state c is taken where Keras takes h"
            yield Rewrite("last state", words, _cell_state)
    other = "forward" if layer.config["go_backwards"] else "backward"
    backwards = configured(go_backwards=not layer.config["go_backwards"])
    yield Rewrite("direction", f"it reads the steps {other}", backwards)
    if layer.config["return_sequences"]:
        words = f"it reads the steps {other}, and gives each output at its own step"
        yield Rewrite("direction", words, partial(_turned_after, backwards))


def _turned_after(apply: Apply, call: LayerCall) -> Result:
    output, out_mask = apply(call)
    if isinstance(output, tuple):
        raise ValueError("it returns states, too")
    return output[:, ::-1], out_mask


def _mask_rewrites(layer: LayerSpec) -> Iterator[Rewrite]:
    yield Rewrite("mask missing", _NO_MASK, masked_by(lambda _: None))
    words = "padding is taken to be at the end of every row"
    yield Rewrite("padding side", words, masked_by(to_end))
    if layer.config["go_backwards"]:
        words = "the reversal of a row includes its padding, which is then read as data"
        yield Rewrite("reversed padding", words, _packed_with_padding)
        for rule in ("zeros", "previous_output"):
            yield Rewrite("reversed padding", words, partial(_reversed_with_padding, rule))
        if layer.config["return_sequences"]:
            words = "its output is turned round with the padding, so that it comes too late"
            yield Rewrite("reversed padding", words, _turned_with_padding)
    rules = {"zeros": "zeros stand", "previous_output": "the last output is repeated"}
    for rule, words in rules.items() if layer.config["return_sequences"] else ():
        if layer.semantics.get("masked_output") != rule:
            told = f"{words} at padded steps, not so in Keras here"
            yield Rewrite("masked steps", told, partial(_with_semantics, rule))


def _with_semantics(rule: str, call: LayerCall) -> Result:
    ruled = replace(call.layer, semantics={**call.layer.semantics, "masked_output": rule})
    return call._replace(layer=ruled).run()


def _step_rewrites(layer: LayerSpec) -> Iterator[Rewrite]:
    """Yield mistakes of one step: the cell's formula and its weights."""
    config = layer.config
    for option, what in (("recurrent_activation", "at the gates"), ("activation", "in the cell")):
        for name, words in _ACTIVATIONS.items() if option in config else ():
            if name != config[option]:
                own = _ACTIVATIONS.get(str(config[option]), config[option])
                told = f"{words} {what}, Keras has {own}"
                yield Rewrite("activation", told, configured(**{option: name}))
    if layer.class_name == "GRU":
        words = "z and 1 - z are exchanged: Keras has h = z h + (1 - z) n"
        yield Rewrite("z", words, weighted(_negate_z))
        yield from _reset_rewrites(layer)
    if config["use_bias"]:
        for factor, kind, words in ((0, "missing", "not added"), (2, "doubled", "added twice")):
            times = weighted_one("bias", partial(np.multiply, factor))
            yield Rewrite(f"bias {kind}", f"the bias is {words}", times)
        for row, name in enumerate(("input", "recurrent")) if config.get("reset_after") else ():
            words = f"the {name} bias is missing: Keras' bias has a row for each"
            yield Rewrite("bias missing", words, weighted_one("bias", partial(_without_row, row)))
    if layer.class_name == "LSTM" and config["use_bias"]:
        words = "1 is added to the bias of f, which the file's bias already holds"
        yield Rewrite("forget bias", words, weighted_one("bias", _raise_forget))
    yield from _layout_rewrites(layer)


def _layout_rewrites(layer: LayerSpec) -> Iterator[Rewrite]:
    """Yield weights in another layout, for ports that hold them in one of their own."""
    count = gate_count(layer.class_name)
    usual = tuple(range(count))
    names = ("kernel", "recurrent_kernel", *(["bias"] if layer.config["use_bias"] else []))
    for some in (names, ("kernel",), ("recurrent_kernel",)):
        which = "" if some is names else f" ({some[0].replace('_', ' ')})"
        for order in orders(count):
            if order != usual:
                words = f"gates in order {written(layer, order)} instead of {written(layer, usual)}"
                apply = weighted(partial(_in_order, some, order))
                yield Rewrite("gate order", f"{words}{which}", apply)
    for name in ("kernel", "recurrent_kernel"):
        shown = name.replace("_", " ")
        words = f"the {shown} is reshaped where it has to be transposed"
        yield Rewrite("reshaped", words, weighted_one(name, _reshaped))
        words = f"the {shown} is not transposed (each gate's matrix is square)"
        apart = weighted_one(name, partial(_each_transposed, count))
        yield Rewrite("not transposed", words, apart)


def _reset_rewrites(layer: LayerSpec) -> Iterator[Rewrite]:
    if layer.config["reset_after"]:
        words = "the reset gate is applied before the recurrent product, Keras applies it after"
        yield Rewrite("reset", words, _reset_before)
        if layer.config["use_bias"]:
            words = "both biases are one: the recurrent bias of n belongs inside the reset gate"
            yield Rewrite("biases joined", words, weighted_one("bias", _join_biases))
    else:
        words = "the reset gate is applied after the recurrent product (as nn.GRU does), Keras "
        yield Rewrite("reset", f"{words}applies it before (reset_after=False)", _reset_after)


def _state_rewrites() -> Iterator[Rewrite]:
    words = "its initial state is not used: it starts with zeros"
    yield Rewrite("initial state", words, _without_start)
    for words, turn in _STARTS.items():
        yield Rewrite("initial state", f"its initial states: {words}", partial(_starting, turn))


def _without_start(call: LayerCall) -> Result:
    if call.context.initial_state is None:
        raise ValueError("it starts with zeros")
    return call.starting(None).run()


def _starting(turn: Callable[[Sequence[Array]], Sequence[Array]], call: LayerCall) -> Result:
    given = call.context.initial_state
    if given is None or len(given) < 2:
        raise ValueError("it has no two initial states")
    return call.starting(tuple(turn(given))).run()


_STARTS: Mapping[str, Callable[[Sequence[Array]], Sequence[Array]]] = {
    "h and c are exchanged": lambda s: [
        part for n in range(0, len(s), 2) for part in s[n : n + 2][::-1]
    ],
    "those of both halves are exchanged": lambda s: [*s[len(s) // 2 :], *s[: len(s) // 2]],
    "those of the forward half are taken for both": lambda s: [*s[: len(s) // 2]] * 2,
    "c is not used": lambda s: [p if n % 2 == 0 else np.zeros_like(p) for n, p in enumerate(s)],
}


def _negate_z(weights: Weights) -> Weights:
    """Negate what goes into z: 1 - sigmoid(a) is sigmoid(-a), and so for hard_sigmoid."""

    def negated(array: Array) -> Array:
        z, r, h = np.split(array, 3, axis=-1)
        return np.concatenate([-z, r, h], axis=-1)

    return {name: negated(array) for name, array in weights.items()}


def _reset_before(call: LayerCall) -> Result:
    weights = dict(call.layer.weights)
    if call.layer.config["use_bias"]:
        weights["bias"] = np.asarray(weights["bias"]).sum(axis=0)
    return call.weighted(weights).configured(reset_after=False).run()


def _reset_after(call: LayerCall) -> Result:
    weights = dict(call.layer.weights)
    if call.layer.config["use_bias"]:
        bias = np.asarray(weights["bias"])
        weights["bias"] = np.stack([bias, np.zeros_like(bias)])
    return call.weighted(weights).configured(reset_after=True).run()


def _join_biases(bias: Array) -> Array:
    return np.stack([bias.sum(axis=0), np.zeros_like(bias[0])])


def _without_row(row: int, bias: Array) -> Array:
    kept: Array = bias * (np.arange(2)[:, np.newaxis] != row)
    return kept


def _raise_forget(bias: Array) -> Array:
    i, f, c, o = np.split(bias, 4, axis=-1)
    return np.concatenate([i, f + 1, c, o], axis=-1)


def _in_order(some: Sequence[str], order: Order, weights: Weights) -> Weights:
    return {name: reorder(weights[name], order, -1) for name in some}


def _reshaped(kernel: Array) -> Array:
    return kernel.reshape(kernel.shape[::-1]).T


def _each_transposed(gates: int, kernel: Array) -> Array:
    return np.concatenate([part.T for part in np.split(kernel, gates, axis=-1)], axis=-1)


def _reversed_with_padding(masked_output: str, call: LayerCall) -> Result:
    """Flip whole rows, but not the mask: the first steps are padding, and count."""
    ruled = replace(call.layer, semantics={**call.layer.semantics, "masked_output": masked_output})
    return masked_by(lambda m: m[:, ::-1])(call._replace(layer=ruled))


def _packed_with_padding(call: LayerCall) -> Result:
    """Flip whole rows whose steps that count were moved to the front; read as many of them."""
    if not isinstance(call.mask, np.ndarray) or call.layer.config["return_sequences"]:
        raise ValueError("no step is padded")
    front = np.argsort(~call.mask.astype(bool), axis=1, kind="stable")
    moved = np.take_along_axis(call.inputs, front[..., np.newaxis], axis=1)
    lengths = np.take_along_axis(call.mask, front, axis=1)
    return call._replace(inputs=moved, mask=lengths[:, ::-1]).run()


def _turned_with_padding(call: LayerCall) -> Result:
    """Flip whole rows of the output, whose steps were put where they count."""
    output, out_mask = call.run()
    valid = valid_steps(call.mask, output)
    turned = np.zeros_like(output)
    for row, steps in enumerate(valid):
        turned[row, steps[::-1]] = output[row, ::-1][steps]
    return turned[:, ::-1], out_mask


def _as_sequences(layer: LayerSpec) -> LayerSpec:
    """Let a layer of one direction give all steps, zeros where padded (as torch does), no state."""
    config = {**layer.config, "return_sequences": True, "return_state": False}
    return replace(layer, config=config, semantics={**layer.semantics, "masked_output": "zeros"})


def _in_time(call: LayerCall) -> Array:
    """Return all steps of a layer of one direction, in the order of time."""
    output, _ = call._replace(layer=_as_sequences(call.layer)).run()
    return np.asarray(output[:, ::-1] if call.layer.config["go_backwards"] else output)


def _picked(pick: Pick, call: LayerCall) -> Result:
    steps = _in_time(call)
    output, out_mask = call.run()
    picked = pick(steps, valid_steps(call.mask, steps))
    return ((picked, *output[1:]) if isinstance(output, tuple) else picked), out_mask


def _swapped(pick: Callable[[Array], Array] | None, call: LayerCall) -> Result:
    """Run over the rows of the batch; both directions give their outputs in the order of rows."""
    output = _in_time(call._replace(inputs=np.swapaxes(call.inputs, 0, 1), mask=None))
    output = np.swapaxes(output, 0, 1)
    if pick is not None:
        return pick(output), None
    return output[:, ::-1] if call.layer.config["go_backwards"] else output, call.mask


def _cell_state(call: LayerCall) -> Result:
    output, _ = call.configured(return_state=True).run()
    kept = output if call.layer.config["return_state"] else output[:1]
    return ((output[2], *kept[1:]) if len(kept) > 1 else output[2]), None


def _last_valid(y: Array, valid: Array) -> Array:
    last = valid.shape[1] - 1 - valid[:, ::-1].argmax(axis=1)
    found: Array = y[np.arange(len(y)), last]
    return found


def _first_valid(y: Array, valid: Array) -> Array:
    found: Array = y[np.arange(len(y)), valid.argmax(axis=1)]
    return found


_PICKS: Mapping[str, Pick] = {
    "the last step of the array is taken (out[:, -1])": lambda y, _: y[:, -1],
    "the first step of the array is taken (out[:, 0])": lambda y, _: y[:, 0],
    "the last step that counts is taken": _last_valid,
    "the first step that counts is taken": _first_valid,
    "the mean over the steps is taken where Keras takes the last": lambda y, _: y.mean(axis=1),
    "the maximum over the steps is taken where Keras takes the last": lambda y, _: y.max(axis=1),
    "the steps are added up where Keras takes the last": lambda y, _: y.sum(axis=1),
}


# ---- both directions -----------------------------------------------------------------------------


def bidirectional_rewrites(layer: LayerSpec, place: str) -> Iterator[Rewrite]:
    """Yield the mistakes of a Bidirectional: those of its halves, and what becomes of them."""
    halves = {name: half for name, half in layer.parts.items() if half.class_name in CELLS}
    if len(halves) < len(layer.parts):
        return
    half = next(iter(halves.values()))
    yield from _merge_rewrites(layer)
    if not half.config["return_sequences"]:
        for words, picks in _LAST_STATES.items():
            yield Rewrite("last state", words, partial(_both_picked, *picks))
        words = "h_n (2, B, H) is viewed as (B, 2 H), which mixes rows of the batch"
        viewed = _merged(lambda _, f, b: np.stack([f, b]).reshape(len(f), -1))
        yield Rewrite("last state", words, viewed)
    yield from _state_rewrites()
    keys = {name: (f"{place}/{name}", half.class_name) for name, half in halves.items()}
    forward, backward = halves.values()
    both = {one.words: one for one in one_way_rewrites(forward, is_half=True)}
    for one in one_way_rewrites(backward, is_half=True):
        if one.words in both:
            yield one._replace(keys=tuple(keys.values()))
    for names, shown in (
        ((), "weights"),
        *(((one,), one.replace("_", " ")) for one in half.weights),
    ):
        words = f"the {shown} of the forward and the backward half are exchanged"
        yield Rewrite("directions exchanged", words, partial(_with_halves, (1, 0), names))
        for source, part in enumerate(("forward", "backward")):
            words = f"both halves use the {shown} of the {part} half"
            apply = partial(_with_halves, (source, source), names)
            yield Rewrite("halves alike", words, apply)


def _merge_rewrites(layer: LayerSpec) -> Iterator[Rewrite]:
    mode = layer.config["merge_mode"]
    for name in MERGE_MODES if mode is not None else ():
        if name != mode:
            words = f"the halves are merged by {name}, Keras has {mode}"
            yield Rewrite("merge mode", words, configured(merge_mode=name))
    for kind, words, merge in _MERGES:
        fits = (kind == "merge order") == (mode == "concat") or kind == "half taken twice"
        if fits and mode is not None:
            yield Rewrite(kind, words, _merged(merge))


def _merged(merge: Both) -> Apply:
    """Change what becomes of both halves' outputs, as Keras has them before merging."""

    def apply(call: LayerCall) -> Result:
        output, out_mask = call.configured(merge_mode=None).run()
        forward, backward, *states = output
        return _result(call, merge(_merge_of(call), forward, backward), states, out_mask[0])

    return apply


def _merge_of(call: LayerCall) -> Callable[[Array, Array], Structure]:
    return MERGES[call.layer.config["merge_mode"]]


def _result(call: LayerCall, merged: Structure, states: Sequence[Array], mask: Structure) -> Result:
    """Return outputs and masks as Bidirectional does; ``merged`` is a pair where both are kept."""
    heads = merged if isinstance(merged, tuple) else (merged,)
    masks = (*[mask] * len(heads), *[None] * len(states))
    output = (*heads, *states)
    return (output, masks) if len(output) > 1 else (output[0], mask)


def _both_picked(first: Pick | None, second: Pick | None, call: LayerCall) -> Result:
    """Take other steps of each half; None: the one that Keras takes."""
    last, _ = call.configured(merge_mode=None).run()
    parts = {name: _as_sequences(half) for name, half in call.layer.parts.items()}
    steps, _ = call.with_parts(parts).configured(merge_mode=None).run()
    valid = valid_steps(call.mask, steps[0])
    forward, backward = (
        own if pick is None else pick(sequence, valid)
        for pick, own, sequence in zip((first, second), last[:2], steps[:2], strict=True)
    )
    return _result(call, _merge_of(call)(forward, backward), last[2:], None)


def _with_halves(sources: tuple[int, int], names: Sequence[str], call: LayerCall) -> Result:
    """Give both halves weights of these ones: those of these names, or all."""
    halves = list(call.layer.parts.values())
    parts = {}
    for (part, own), source in zip(call.layer.parts.items(), sources, strict=True):
        other = halves[source].weights
        some = {name: other[name] for name in names or other}
        parts[part] = replace(own, weights={**own.weights, **some})
    return call.with_parts(parts).run()


_MERGES: Sequence[tuple[str, str, Both]] = (
    (
        "merge order",
        "the backward half comes first in the concatenation",
        lambda _, f, b: np.concatenate([b, f], axis=-1),
    ),
    (
        "merge order",
        "units of both halves take turns, Keras has all of the forward half first",
        lambda _, f, b: np.stack([f, b], axis=-1).reshape(*f.shape[:-1], -1),
    ),
    ("merge mode", "the backward half is subtracted from the forward half", lambda _, f, b: f - b),
    ("merge mode", "the forward half is subtracted from the backward half", lambda _, f, b: b - f),
    ("merge mode", "the larger of both halves is taken", lambda _, f, b: np.maximum(f, b)),
    ("half left out", "the backward half is left out", lambda _, f, b: f),
    ("half left out", "the forward half is left out", lambda _, f, b: b),
    (
        "half taken twice",
        "the forward half is taken twice, the backward half never",
        lambda merge, f, b: merge(f, f),
    ),
    (
        "half taken twice",
        "the backward half is taken twice, the forward half never",
        lambda merge, f, b: merge(b, b),
    ),
)
_FIRST, _LAST = (
    _PICKS["the first step of the array is taken (out[:, 0])"],
    (_PICKS["the last step of the array is taken (out[:, -1])"]),
)
# Which steps of the forward and of the backward half are taken; None: the one that Keras takes
_LAST_STATES: Mapping[str, tuple[Pick | None, Pick | None]] = {
    "the last step of both halves is taken (out[:, -1]); the backward half ends at the first": (
        _LAST,
        _LAST,
    ),
    "the first step of both halves is taken (out[:, 0]); the forward half ends at the last": (
        _FIRST,
        _FIRST,
    ),
    "the last step that counts is taken of both halves; the backward half ends at the first": (
        None,
        _last_valid,
    ),
    "the ends of the array are taken for both halves, also where they are padding": (_LAST, _FIRST),
    "the last step of the array is taken for the forward half, also where it is padding": (
        _LAST,
        None,
    ),
    "the first step of the array is taken for the backward half, also where it is padding": (
        None,
        _FIRST,
    ),
    "the last step of the backward half is taken (out[:, -1]), which ends at the first": (
        None,
        _LAST,
    ),
    **{
        f"the {words} over the steps is taken where Keras takes the last": (pick, pick)
        for words, pick in {
            "mean": lambda y, _: y.mean(axis=1),
            "maximum": lambda y, _: y.max(axis=1),
        }.items()
    },
}
