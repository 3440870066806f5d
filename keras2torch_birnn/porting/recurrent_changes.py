"""Known mistakes in ports of LSTM, GRU and SimpleRNN, as changes to try.

B batch, T time, H units. Gates are numbered in Keras' order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from keras2torch_birnn.porting.axis_changes import RESHAPED, reshaped
from keras2torch_birnn.porting.cell_changes import ACTIVATIONS, inner_changes, show_activation
from keras2torch_birnn.porting.changes import (
    Change,
    LayerCall,
    Maker,
    Weights,
    configured,
    followed_by,
    masked_by,
    settled,
    to_end,
    weighted,
    weighted_one,
)
from keras2torch_birnn.porting.gate_changes import gate_changes, transposed_gate_changes
from keras2torch_birnn.porting.gates import Order, gate_count, orders, written
from keras2torch_birnn.porting.mask_rules import PLACES, Rule
from keras2torch_birnn.porting.state_changes import state_changes
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.rnn.parameters import reorder
from keras2torch_birnn.spec import Array, LayerSpec, Structure

_OF_IMAGES = ("ConvLSTM1D", "ConvLSTM2D")
CELLS = ("LSTM", "GRU", "SimpleRNN", *_OF_IMAGES)


def as_cell(layer: LayerSpec) -> LayerSpec:
    """Describe an LSTM of images as the LSTM whose mistakes it shares."""
    if layer.class_name not in _OF_IMAGES:
        return layer
    config = {**layer.config, "units": layer.config["filters"]}
    return replace(layer, class_name="LSTM", config=config)


def one_way_changes(maker: Maker) -> Iterator[Change]:
    """Yield the known mistakes of a layer of one direction, the likeliest first."""
    cell = Maker(maker.path, as_cell(maker.layer), maker.keys)
    yield from cell_changes(cell)
    for name in ("kernel", "recurrent_kernel") if maker.layer.class_name in _OF_IMAGES else ():
        words = f"the {name.replace('_', ' ')} of an even size is padded at the other side"
        yield maker.change("convolution padding", words, partial(_earlier_kernel, name))
    yield from _direction_changes(cell)
    yield from kept_state_changes(cell)
    yield from inner_changes(cell)
    yield from order_changes(cell)


def _earlier_kernel(moved: str, call: LayerCall) -> Result:
    """Let one kernel of even size begin a step earlier: zeros make both kernels odd."""
    config = call.layer.config
    if config["padding"] != "same" or {*config["strides"], *config["dilation_rate"]} != {1}:
        raise ValueError("its steps are not those of the state")
    more = [1 - size % 2 for size in config["kernel_size"]]
    weights = dict(call.layer.weights)
    for name in ("kernel", "recurrent_kernel"):
        widths = [(0, one) if name == moved else (one, 0) for one in more]
        weights[name] = np.pad(np.asarray(weights[name]), [*widths, (0, 0), (0, 0)])
    size = tuple(map(sum, zip(config["kernel_size"], more, strict=True)))
    return call.weighted(weights).configured(kernel_size=size).run()


# ---- one direction, or both alike ----------------------------------------------------------------


def cell_changes(maker: Maker) -> Iterator[Change]:
    """Yield mistakes of one step."""
    half, config = maker.layer, maker.config
    options = [name for name in ("recurrent_activation", "activation") if name in config]
    for option in options:
        what = "at the gates" if option == "recurrent_activation" else "as the activation"
        for name in ACTIVATIONS:
            if name != config[option]:
                words = (
                    f"{show_activation(name)} {what}, Keras has {show_activation(config[option])}"
                )
                yield maker.change("activation", words, configured(**{option: name}))
    if half.class_name == "GRU":
        yield maker.change(
            "z", "z and 1 - z are exchanged: Keras has h = z h + (1 - z) n", weighted(_negate_z)
        )
        yield from _reset_changes(maker)
    if config["use_bias"]:
        yield from bias_changes(maker)
        for row, name in enumerate(("input", "recurrent")) if config.get("reset_after") else ():
            words = f"the {name} bias is missing: Keras' bias has a row for each"
            missing, twice = (weighted_one("bias", partial(_row_times, n, row)) for n in (0, 2))
            yield maker.change("bias missing", words, missing)
            yield maker.change("bias doubled", f"the {name} bias is added twice", twice)
    if half.class_name == "LSTM" and config["use_bias"]:
        words = "1 is added to the bias of f, which the file's bias already holds"
        yield maker.change("forget bias", words, weighted_one("bias", _raise_forget))
    for kind, words, change in gate_changes(half):
        yield maker.change(kind, words, weighted(change))
    apart = partial(_each_transposed, gate_count(half.class_name))
    yield maker.change(
        "not transposed",
        "the recurrent kernel is not transposed (each gate's matrix is square)",
        weighted_one("recurrent_kernel", apart),
    )
    for kind, words, change in transposed_gate_changes(half):
        yield maker.change(kind, words, weighted(change))
    if half.weights and half.weights["kernel"].shape[0] == config["units"]:
        yield maker.change(
            "not transposed",
            "the kernel is not transposed (each gate's matrix is square)",
            weighted_one("kernel", apart),
        )
    for edge, which in ((-1, "last"), (0, "first")):
        words = f"the {which} step that it reads is left out (its loop is one step too short)"
        yield maker.change("steps", words, partial(_without_step, edge))
    for name in ("kernel", "recurrent_kernel"):
        shown = name.replace("_", " ")
        yield maker.change("reshaped", f"the {shown} {RESHAPED}", weighted_one(name, reshaped))
    yield maker.change(
        "mask missing", "the mask is not used: padding is read as data", masked_by(_none)
    )
    words = "padding is taken to be at the end of every row"
    yield maker.change("padding side", words, masked_by(to_end))
    if config["return_sequences"]:
        yield maker.change("padding side", words, _at_end_then_zeroed)
    for words, places in PLACES.items():
        own_rule = masked_by(partial(_ruled, places))
        yield maker.change("mask rule", f"{words}; other layers have the right one", own_rule)
    yield from _reversal_changes(maker)
    rules = {
        "zeros": "gives zeros at padded steps",
        "previous_output": "repeats the last output at padded steps",
    }
    for rule, words in rules.items() if config["return_sequences"] else ():
        if half.semantics.get("masked_output") != rule:
            yield maker.change(
                "masked steps", f"{words}, Keras does not here", settled(masked_output=rule)
            )


def kept_state_changes(maker: Maker) -> Iterator[Change]:
    """Yield states that are kept from call to call or from row to row, or are not."""
    kept = maker.config["stateful"]
    words = "its states are kept from call to call, Keras starts each call with zeros"
    if kept:
        words = "its states are not kept from call to call, Keras keeps them (stateful)"
    rows = "its states are kept from row to row of the batch: start each row with zeros"
    told = {words: configured(stateful=not kept), rows: _row_after_row}
    if kept and maker.layer.class_name == "LSTM":
        states = ("h", "cell state c")
        for number, (one, other) in enumerate((states, states[::-1])):
            alone = f"its {one} alone is kept from call to call, the {other} starts with zeros"
            told[alone] = partial(_carrying, number)
    for what, apply in told.items():
        yield maker.change("kept state", what, apply)


def _carrying(number: int, call: LayerCall) -> Result:
    """Carry one state of a layer from call to call; zeros stand for the others."""
    carried = None if call.context.states is None else call.context.states.get(call.context.place)
    if call.context.states is not None and carried is not None:
        some = (part if n == number else np.zeros_like(part) for n, part in enumerate(carried))
        call.context.states[call.context.place] = tuple(some)
    return call.run()


def _row_after_row(call: LayerCall) -> Result:
    """Read one row after the other, each with the last states of the one before."""
    one = call.configured(return_state=True)
    outputs: list[Structure] = []
    for row in range(len(call.inputs)):
        some = slice(row, row + 1)
        valid = call.mask[some] if isinstance(call.mask, np.ndarray) else None
        output, _ = one._replace(inputs=call.inputs[some], mask=valid).run()
        one = one.starting(tuple(output[1:]))
        outputs.append(output if call.layer.config["return_state"] else output[:1])
    joined = tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))
    out_mask = call.mask if call.layer.config["return_sequences"] else None
    if call.layer.config["return_state"]:
        return joined, (out_mask, *[None] * (len(joined) - 1))
    return joined[0], out_mask


def _reversal_changes(maker: Maker) -> Iterator[Change]:
    """Yield rows that are reversed together with their padding."""
    if not maker.config["go_backwards"]:
        return
    words = "the reversal of a row includes its padding, which is then read as data"
    yield maker.change("reversed padding", words, partial(_reversed_with_padding, "zeros"))
    words_of_mask = "the mask is not turned round with the steps"
    yield maker.change("reversed padding", words_of_mask, partial(_reversed_with_padding, None))
    yield maker.change(
        "reversed padding", words_of_mask, partial(_reversed_with_padding, "previous_output")
    )
    if not maker.config["return_sequences"]:
        yield maker.change("reversed padding", words, _packed_with_padding)


def _without_step(edge: int, call: LayerCall) -> Result:
    """Leave out one end of the steps, in the order of reading; zeros are there."""
    valid = valid_steps(call.mask, call.inputs)
    valid[:, -1 - edge if call.layer.config["go_backwards"] else edge] = False
    zeroed = settled(masked_output="zeros")
    output, _ = zeroed(call._replace(mask=valid))
    return output, call.aside().run()[1]


def _reset_changes(maker: Maker) -> Iterator[Change]:
    if maker.config["reset_after"]:
        words = "the reset gate is applied before the recurrent product, Keras applies it after"
        yield maker.change("reset", words, partial(_reset_before, together=True))
        yield maker.change(
            "reset",
            f"{words}, and leaves out the recurrent bias of n",
            partial(_reset_before, together=False),
        )
        if maker.config["use_bias"]:
            yield maker.change(
                "bias split",
                "the recurrent bias of n is added outside of the reset gate (both biases as one)",
                weighted_one("bias", _join_biases),
            )
    else:
        words = "the reset gate is applied after the recurrent product (as nn.GRU does), Keras "
        yield maker.change("reset", words + "applies it before (reset_after=False)", _reset_after)


def _reset_before(call: LayerCall, *, together: bool) -> Result:
    weights = dict(call.layer.weights)
    if call.layer.config["use_bias"]:
        bias = np.asarray(weights["bias"])
        joined = bias.sum(axis=0)
        if not together:
            units = call.layer.config["units"]
            joined[2 * units :] = bias[0, 2 * units :]
        weights["bias"] = joined
    return call.weighted(weights).configured(reset_after=False).run()


def _reset_after(call: LayerCall) -> Result:
    weights = dict(call.layer.weights)
    if call.layer.config["use_bias"]:
        bias = np.asarray(weights["bias"])
        weights["bias"] = np.stack([bias, np.zeros_like(bias)])
    return call.weighted(weights).configured(reset_after=True).run()


def _negate_z(weights: Weights) -> Weights:
    """Negate what goes into z: 1 - sigmoid(a) is sigmoid(-a), and so for hard_sigmoid."""

    def negated(array: Array) -> Array:
        z, r, h = np.split(array, 3, axis=-1)
        return np.concatenate([-z, r, h], axis=-1)

    return {name: negated(array) for name, array in weights.items()}


def _join_biases(bias: Array) -> Array:
    return np.stack([bias.sum(axis=0), np.zeros_like(bias[0])])


def bias_changes(maker: Maker) -> Iterator[Change]:
    """Yield a bias that is not added, or twice."""
    for factor, kind, words in ((0, "missing", "not added"), (2, "doubled", "added twice")):
        times = weighted_one("bias", partial(np.multiply, factor))
        yield maker.change(f"bias {kind}", f"the bias is {words}", times)


def _row_times(factor: int, row: int, bias: Array) -> Array:
    """Multiply one row of a bias (2, ...)."""
    return bias * np.where(np.arange(2)[:, np.newaxis] == row, factor, 1)


def _raise_forget(bias: Array) -> Array:
    i, f, c, o = np.split(bias, 4, axis=-1)
    return np.concatenate([i, f + 1, c, o], axis=-1)


def _at_end_then_zeroed(call: LayerCall) -> Result:
    """Read as if padding were at the end; set the output to zero where it really is."""
    output, out_mask = masked_by(to_end)(call)
    if not isinstance(call.mask, np.ndarray) or isinstance(output, tuple):
        raise ValueError("no step is padded")
    valid = call.mask[:, ::-1] if call.layer.config["go_backwards"] else call.mask
    return output * valid.astype(bool)[..., np.newaxis], out_mask


def _reversed_with_padding(masked_output: str | None, call: LayerCall) -> Result:
    """Flip whole rows, but not the mask: the first steps are padding, and count.

    masked_output: the output at steps that the mask leaves out; None: what Keras has there.
    """
    if not call.layer.config["go_backwards"]:
        raise ValueError("it is not reversed")
    own = {} if masked_output is None else {"masked_output": masked_output}
    ruled = replace(call.layer, semantics={**call.layer.semantics, **own})
    return masked_by(lambda m: m[:, ::-1])(call._replace(layer=ruled))


def _packed_with_padding(call: LayerCall) -> Result:
    """Flip whole rows whose steps that count were moved to the front; read as many of them."""
    if not call.layer.config["go_backwards"] or not isinstance(call.mask, np.ndarray):
        raise ValueError("it is not reversed, or no step is padded")
    front = np.argsort(~call.mask.astype(bool), axis=1, kind="stable")
    moved = np.take_along_axis(call.inputs, front[..., np.newaxis], axis=1)
    lengths = np.take_along_axis(call.mask, front, axis=1)
    return call._replace(inputs=moved, mask=lengths[:, ::-1]).run()


def _each_transposed(gates: int, kernel: Array) -> Array:
    return np.concatenate([part.T for part in np.split(kernel, gates, axis=-1)], axis=-1)


def _ruled(rule: Rule, mask: Array) -> Array:
    return rule(mask.astype(bool), None)


def _none(mask: Array) -> None:
    return None


def order_changes(maker: Maker, *, each: bool = True) -> Iterator[Change]:
    """Yield wrong orders of gates: in all weights and, with ``each``, in one of them."""
    half = maker.layer
    count = gate_count(half.class_name)
    usual = tuple(range(count))
    names = ("kernel", "recurrent_kernel", *(["bias"] if half.config["use_bias"] else []))
    for some in (names, *((name,) for name in names if each)):
        for order in orders(count):
            if order != usual:
                words = f"gates in order {written(half, order)} instead of {written(half, usual)}"
                if len(some) == 1:
                    words = f"{some[0].replace('_', ' ')}: {words}"
                yield maker.change("gate order", words, weighted(partial(_in_order, some, order)))


def _in_order(some: Sequence[str], order: Order, weights: Weights) -> Weights:
    return {name: reorder(weights[name], order, -1) for name in some}


# ---- a layer of one direction --------------------------------------------------------------------


def _direction_changes(maker: Maker) -> Iterator[Change]:
    yield from state_changes(maker)
    backwards = configured(go_backwards=not maker.config["go_backwards"])
    yield maker.change("direction", "reads the steps in the other direction", backwards)
    if maker.config["return_sequences"]:
        turned = followed_by(lambda y: y[:, ::-1])
        yield maker.change("direction", "gives the steps in reversed order", turned)
        words = "reads the steps in the other direction, and gives each output at its own step"
        yield maker.change("direction", words, _read_backwards)
        yield maker.change("batch_first", BATCH_FIRST, partial(_swapped, None))
        return
    yield maker.change("batch_first", BATCH_FIRST, partial(_swapped, last_step))
    for words, pick in _PICKS.items():
        yield maker.change("last state", words, partial(_picked, pick))
    if maker.layer.class_name == "LSTM":
        words = "takes the cell state c where Keras takes h"
        yield maker.change("last state", words, _cell_state)


def _read_backwards(call: LayerCall) -> Result:
    turned = followed_by(lambda y: y[:, ::-1])
    return turned(call.configured(go_backwards=not call.layer.config["go_backwards"]))


def first_step(y: Array) -> Array:
    """Return the first step of (B, T, H)."""
    return y[:, 0]


def last_step(y: Array) -> Array:
    """Return the last step of (B, T, H)."""
    return y[:, -1]


def mean_step(y: Array) -> Array:
    """Return the mean over time of (B, T, H)."""
    mean: Array = y.mean(axis=1)
    return mean


def sum_of_steps(y: Array) -> Array:
    """Return the sum over time of (B, T, H)."""
    total: Array = y.sum(axis=1)
    return total


def largest_step(y: Array) -> Array:
    """Return the maximum over time of (B, T, H)."""
    largest: Array = y.max(axis=1)
    return largest


def mean_of_valid(y: Array, valid: Array) -> Array:
    """Return the mean of (B, T, H), zero at other steps, over the steps (B, T) that count."""
    mean: Array = y.sum(axis=1) / valid.sum(axis=1, keepdims=True)
    return mean


def step_before_last(y: Array, valid: Array) -> Array:
    """Return the step of (B, T, H) before the last one that counts, or the first."""
    last = valid.shape[1] - 1 - valid[:, ::-1].argmax(axis=1)
    found: Array = y[np.arange(len(y)), np.maximum(last - 1, 0)]
    return found


BATCH_FIRST = "batch and time are exchanged (batch_first): it runs over the rows of the batch"
# All steps (B, T, H), zero where nothing counts, and those (B, T) that count -> (B, H)
Pick: TypeAlias = Callable[[Array, Array], Array]


def of_all(pick: Callable[[Array], Array]) -> Pick:
    """Take of all steps, whether they count or not."""
    return lambda y, _: pick(y)


_PICKS: Mapping[str, Pick] = {
    "takes the first step where Keras takes the last": of_all(first_step),
    "takes the last step of the array, also where it is padding": of_all(last_step),
    "takes the last step but one": of_all(lambda y: y[:, -2]),
    "takes the mean over the steps where Keras takes the last": of_all(mean_step),
    "adds up the steps where Keras takes the last": of_all(sum_of_steps),
    "takes the maximum over the steps where Keras takes the last": of_all(largest_step),
    "takes the mean over the steps that count where Keras takes the last": mean_of_valid,
    "takes the step before the last that counts": step_before_last,
}


def as_sequences(layer: LayerSpec) -> LayerSpec:
    """Let a layer of one direction give all steps, zeros where padded (as torch does), no state."""
    config = {**layer.config, "return_sequences": True, "return_state": False}
    return replace(layer, config=config, semantics={**layer.semantics, "masked_output": "zeros"})


def valid_steps(mask: Structure, sequence: Array) -> Array:
    """Return the mask (B, T) of a sequence (B, T, H), all true if it has none."""
    if isinstance(mask, np.ndarray):
        return mask.astype(bool)
    return np.ones(sequence.shape[:2], bool)


def _picked(pick: Pick, call: LayerCall) -> Result:
    output, _ = call._replace(layer=as_sequences(call.layer)).run()
    return pick(output, valid_steps(call.mask, output)), None


def _swapped(pick: Callable[[Array], Array] | None, call: LayerCall) -> Result:
    output, _ = call._replace(
        layer=as_sequences(call.layer), inputs=np.swapaxes(call.inputs, 0, 1), mask=None
    ).run()
    output = np.swapaxes(output, 0, 1)
    return (output, call.mask) if pick is None else (pick(output), None)


def _cell_state(call: LayerCall) -> Result:
    output, _ = call.configured(return_state=True).run()
    return output[2], None
