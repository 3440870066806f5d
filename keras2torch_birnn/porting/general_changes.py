"""Known mistakes that can be made in any layer, as changes to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch

from keras2torch_birnn.porting.axis_changes import SIDES, Around, view_changes
from keras2torch_birnn.porting.changes import (
    Change,
    LayerCall,
    Maker,
    followed_by,
    left_out,
    masked_by,
    reading,
    reading_one,
)
from keras2torch_birnn.porting.moments import center, standardize
from keras2torch_birnn.porting.observing import HALVES, keep_valid
from keras2torch_birnn.porting.recurrent_changes import CELLS
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import Array, Structure, leaves

AFTER = ("relu", "sigmoid", "softmax", "log_softmax", "tanh")


def general_changes(maker: Maker) -> Iterator[Change]:
    """Yield mistakes that can be made in any layer."""
    yield maker.change("left out", "it is left out", left_out)
    words = "the mask is not used: padding is read as data"
    yield maker.change("mask missing", words, masked_by(lambda _: None))
    yield from masked_step_changes(maker)
    for name in AFTER:
        after = followed_by(partial(activate, name))
        yield maker.change("extra", f"{name} follows it, which Keras does not have", after)
    words = "a LayerNorm without weights follows it, which Keras does not have"
    yield maker.change("extra", words, followed_by(_normalized))
    for words, operation in {**_OPERATIONS, **_BY_STEP}.items():
        yield maker.change("extra", f"its output is {words}", followed_by(operation))
    inputs = {**_INPUTS, **_BY_STEP} if maker.layer.class_name != "Embedding" else {}
    for words, operation in inputs.items():
        yield maker.change("extra", f"its input is {words}", reading(operation))
    for words, factor in _FACTORS.items():
        yield maker.change("extra", f"its output is {words}", followed_by(partial(_times, factor)))
    for words, power in _POWERS_OF_WIDTH.items():
        yield maker.change("extra", f"its output is {words}", partial(_scaled_by_width, power))
    sides = {"output": followed_by} if maker.layer.class_name == "Embedding" else SIDES
    yield from view_changes(maker, sides)
    yield maker.change("extra", "it is applied twice, Keras does it once", _twice)
    words = "its input is added to its output, which Keras does not do"
    yield maker.change("extra", words, _with_input)
    for what, around in sides.items():
        whose = "its" if what == "output" else "its input's"
        turned = around(lambda y: y[:, ::-1] if y.ndim > 2 else y)
        yield maker.change("direction", f"{whose} steps come in reversed order", turned)
        for words, move in _FLIPS.items():
            yield maker.change("flipped", f"its {what} is {words}", around(move))
    for end in (slice(0, 1), slice(-1, None)) if "input" in sides else ():
        which = "last" if end.start else "first"
        unread = reading(partial(_without_feature, end))
        yield maker.change("left out", f"the {which} feature of its input is zero", unread)
    for words, (wider, part) in _PARTS.items():
        apply = partial(_with_part, wider, part)
        yield maker.change("extra", f"{words}, which Keras does not do", apply)
    for words, move in MOVES.items():
        yield maker.change("steps", f"its steps come one step too {words}", followed_by(move))
    read = "ids" if maker.layer.class_name == "Embedding" else "input's steps"
    if read == "ids" or maker.layer.class_name in (*CELLS, "Bidirectional"):
        for words, move in MOVES.items():
            yield maker.change("steps", f"its {read} come one step too {words}", reading(move))
    yield maker.change("left out", "zeros are in its place", followed_by(np.zeros_like))


def masked_step_changes(maker: Maker) -> Iterator[Change]:
    """Yield an input and an output that are zero at padded steps."""
    for what, apply in (("input", _reading_zeros), ("output", _giving_zeros)):
        words = f"its {what} is zero at padded steps, which Keras does not do"
        yield maker.change("masked steps", words, apply)


def rounding_changes(maker: Maker) -> Iterator[Change]:
    """Yield an output that is rounded to each half precision."""
    for dtype, name in HALVES.items():
        rounded = followed_by(partial(_rounded, dtype))
        yield maker.change("extra", f"its output is rounded to {name}", rounded)


def row_changes(maker: Maker) -> Iterator[Change]:
    """Yield rows that are in another order behind a layer, for which they were sorted."""
    for words, order in _ROW_ORDERS.items():
        yield maker.change("rows", words, partial(_reordered, order))


def _at_zero(x: Structure, mask: Structure) -> Array:
    if not isinstance(mask, np.ndarray) or np.shape(x)[:2] != mask.shape or np.ndim(x) < 3:
        raise ValueError("no step is padded")
    return keep_valid(np.asarray(x), mask.astype(bool))


def _reading_zeros(call: LayerCall) -> Result:
    return call._replace(inputs=_at_zero(call.inputs, call.mask)).run()


def _giving_zeros(call: LayerCall) -> Result:
    output, out_mask = call.run()
    return _at_zero(output, call.mask if isinstance(call.mask, np.ndarray) else out_mask), out_mask


def _reordered(order: Callable[[Array], Array], call: LayerCall) -> Result:
    """Give the rows of the output and its mask in another order, which follows from lengths."""
    output, out_mask = call.run()
    if not isinstance(call.mask, np.ndarray) or isinstance(output, tuple):
        raise ValueError("there are no lengths")
    places = order(call.mask.astype(bool).sum(axis=1))
    return output[places], out_mask[places] if isinstance(out_mask, np.ndarray) else out_mask


def longest_first(lengths: Array) -> Array:
    """Return the order of rows by their lengths, as packing needs them."""
    return np.argsort(-lengths, kind="stable")


def _twice_longest_first(lengths: Array) -> Array:
    order = longest_first(lengths)
    return order[order]


_ROW_ORDERS: Mapping[str, Callable[[Array], Array]] = {
    "its rows are sorted by their lengths, and not put back": longest_first,
    "its rows are sorted by their lengths, the shortest first, and not put back": (
        lambda lengths: np.argsort(lengths, kind="stable")
    ),
    "its rows are sorted twice: put them back with the inverse of the order": _twice_longest_first,
    "its rows are put back with an order that they never had": (
        lambda lengths: np.argsort(longest_first(lengths), kind="stable")
    ),
}


def _rounded(dtype: torch.dtype, x: Array) -> Array:
    kept: Array = torch.from_numpy(np.array(x, np.float64)).to(dtype).double().numpy()
    return kept


def _truncated(x: Array) -> Array:
    whole: Array = np.trunc(x)
    if not whole.any():
        raise ValueError("nothing is left")
    return whole


def _unit(x: Array) -> Array:
    moved: Array = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return moved


def _every_step(x: Array, y: Array) -> Array:
    """Repeat x (B, 1, ...) to the steps of y (B, T, ...)."""
    if y.ndim < 3:
        raise ValueError("there are no steps")
    return np.broadcast_to(x, y.shape).copy()


# Operations that follow a layer where Keras has none
_OPERATIONS: Mapping[str, Callable[[Array], Array]] = {
    "squared": np.square,
    "its absolute value": np.abs,
    "clipped to -1 to 1": lambda y: np.clip(y, -1, 1),
    "clipped to 0 to 1": lambda y: np.clip(y, 0, 1),
    "rounded to whole numbers": np.round,
    "divided by its norm": _unit,
    "exponentiated": np.exp,
    "replaced by its logarithm": np.log,
    "subtracted from 1": lambda y: 1 - y,
    "1 where it is largest, 0 elsewhere": lambda y: 1.0 * (y == y.max(axis=-1, keepdims=True)),
    "replaced by log(1 + x) of it": np.log1p,
    "replaced by exp(x) - 1 of it": np.expm1,
    "replaced by its square root": np.sqrt,
    "that of its last step at every step": lambda y: _every_step(y[:, -1:], y),
    "that of its first step at every step": lambda y: _every_step(y[:, :1], y),
    "its mean over the steps at every step": lambda y: _every_step(y.mean(1, keepdims=True), y),
    "added up from step to step": lambda y: _every_step(y.cumsum(axis=1), y),
    "replaced by its sign": np.sign,
}


def _with_zero_step(which: int, y: Array) -> Array:
    left = np.array(_every_step(y, y))
    left[:, which] = 0
    return left


def _every_second(y: Array) -> Array:
    return _every_step(y[:, ::2].repeat(2, axis=1)[:, : y.shape[1]], y)


# Operations on the steps of sequences (B, T, ...), before or behind a layer
_BY_STEP: Mapping[str, Callable[[Array], Array]] = {
    "replaced by its difference from the step before": lambda y: _every_step(y - _one_later(y), y),
    "replaced by its difference from the step before, 0 at the first step": (
        lambda y: _every_step(np.diff(y, axis=1, prepend=y[:, :1]), y)
    ),
    "the mean of each step and the one before": lambda y: _every_step((y + _one_later(y)) / 2, y),
    "zero at the first step": partial(_with_zero_step, 0),
    "zero at the last step": partial(_with_zero_step, -1),
    "that of every second step, each twice": _every_second,
}


def _by_largest(first: int, x: Array) -> Array:
    axes = tuple(range(first % x.ndim, x.ndim))
    scaled: Array = x / np.abs(x).max(axis=axes, keepdims=True)
    return scaled


def _to_unit_range(first: int, x: Array) -> Array:
    axes = tuple(range(first % x.ndim, x.ndim))
    low = x.min(axis=axes, keepdims=True)
    scaled: Array = (x - low) / (x.max(axis=axes, keepdims=True) - low)
    return scaled


# What is looked at -> the first of its axes
_RANGES = {"all values": 0, "each row": 1, "the last axis": -1}
_RESCALES: Mapping[str, Callable[[int, Array], Array]] = {
    "divided by the largest absolute value": _by_largest,
    "brought to 0 to 1, by the least and the largest value": _to_unit_range,
}
# Operations before a layer where Keras has none
_INPUTS: Mapping[str, Callable[[Array], Array]] = {
    "truncated to whole numbers": _truncated,
    "squared": np.square,
    "its absolute value": np.abs,
    "replaced by log(1 + |x|), with its sign": lambda x: np.sign(x) * np.log1p(np.abs(x)),
    "divided by its norm": _unit,
    **{
        f"standardized over {words}{also}": partial(standardize, axes, free=free)
        for words, axes in (
            ("all values", None),
            ("the steps", 1),
            ("the last axis", -1),
            ("the batch and the steps", (0, 1)),
            ("the batch", 0),
            ("the steps and the features", (1, 2)),
        )
        for free, also in ((0, ""), (1, " (with torch.std, of n - 1)"))
    },
    **{
        f"reduced by its mean over {words}": partial(center, axes)
        for words, axes in (("the steps", 1), ("the last axis", -1), ("all values", None))
    },
    **{
        f"{done} of {words}": partial(rescale, axes)
        for words, axes in _RANGES.items()
        for done, rescale in _RESCALES.items()
    },
}
_FACTORS: Mapping[str, float] = {"doubled": 2.0, "halved": 0.5, "negated": -1.0}
_POWERS_OF_WIDTH: Mapping[str, float] = {
    "divided by the square root of the width": -0.5,
    "multiplied by the square root of the width": 0.5,
}


def _twice(call: LayerCall) -> Result:
    output, out_mask = _of_its_shape(call.run(), call.inputs)
    more, _ = call.aside()._replace(inputs=output).run()
    return more, out_mask


def _one_later(x: Array) -> Array:
    """Move the steps of (B, T, ...) one on; zeros come first."""
    if x.ndim < 2:
        raise ValueError("it has no steps")
    later: Array = np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
    return later


def _one_earlier(x: Array) -> Array:
    """Move the steps of (B, T, ...) one back; zeros come last."""
    return _one_later(x[:, ::-1])[:, ::-1]


def _along(axis: int, x: Array) -> Array:
    if (x.ndim <= axis + 1 and axis > 0) or not np.issubdtype(x.dtype, np.floating):
        raise ValueError("there is no such axis before the last one")
    return np.flip(x, axis)


def _rolled(by: int, x: Array) -> Array:
    if x.ndim < 2 or not np.issubdtype(x.dtype, np.floating):
        raise ValueError("it has no features")
    return np.roll(x, by, axis=-1)


_FLIPS: Mapping[str, Callable[[Array], Array]] = {
    "in reversed order of its features": partial(_along, -1),
    "reversed along the batch": partial(_along, 0),
    "reversed along the second axis of the image": partial(_along, 2),
    "moved by one feature, the last one first": partial(_rolled, 1),
    "moved by one feature, the first one last": partial(_rolled, -1),
}


def _without_feature(which: slice, x: Array) -> Array:
    if x.ndim < 2 or x.shape[-1] < 2 or not np.issubdtype(x.dtype, np.floating):
        raise ValueError("it has no features")
    kept = np.array(x)
    kept[..., which] = 0
    return kept


def _first_of(width: int) -> slice:
    return slice(width)


def _last_of(width: int) -> slice:
    return slice(-width, None)


# What is added -> whether the input is wider than the output, and which features are meant
_PARTS: Mapping[str, tuple[bool, Callable[[int], slice]]] = {
    "the first features of its input are added to its output": (True, _first_of),
    "the last features of its input are added to its output": (True, _last_of),
    "its input is added to the first features of its output": (False, _first_of),
    "its input is added to the last features of its output": (False, _last_of),
}


def _with_part(wider: bool, part: Callable[[int], slice], call: LayerCall) -> Result:
    output, out_mask = call.run()
    x, y = np.asarray(call.inputs), np.array(output)
    narrow, wide = (y, x) if wider else (x, y)
    if x.shape[:-1] != y.shape[:-1] or narrow.shape[-1] >= wide.shape[-1]:
        raise ValueError("another shape")
    some = part(narrow.shape[-1])
    if wider:
        return y + x[..., some], out_mask
    y[..., some] += x
    return y, out_mask


def _around(by: int, x: Array) -> Array:
    """Move the steps of (B, T, ...); those that leave one end come in at the other."""
    if x.ndim < 2:
        raise ValueError("it has no steps")
    return np.roll(x, by, axis=1)


MOVES: Mapping[str, Callable[[Array], Array]] = {
    "late": _one_later,
    "early": _one_earlier,
    "late, the last one first": partial(_around, 1),
    "early, the first one last": partial(_around, -1),
}


def _with_input(call: LayerCall) -> Result:
    output, out_mask = _of_its_shape(call.run(), call.inputs)
    return output + call.inputs, out_mask


def _of_its_shape(result: Result, inputs: Structure) -> Result:
    """Return the result of a layer, if its output has the shape of its input."""
    output, _ = result
    if np.shape(output) != np.shape(inputs) or isinstance(output, tuple):
        raise ValueError("another shape")
    return result


def _normalized(y: Array) -> Array:
    """Normalize the last axis, with torch's epsilon."""
    if y.shape[-1] < 2:
        raise ValueError("nothing to normalize")
    scale = np.sqrt(y.var(axis=-1, keepdims=True) + 1e-5)
    normalized: Array = (y - y.mean(axis=-1, keepdims=True)) / scale
    return normalized


def scaled_by(maker: Maker, what: str, line: tuple[float, float]) -> Change:
    """Return the change that makes a x + b of a layer's input or output."""
    return _on_a_line(maker, what, SIDES[what], line)


def input_scaled(maker: Maker, number: int, line: tuple[float, float]) -> Change:
    """Return the change that makes a x + b of one of a layer's inputs."""
    return _on_a_line(maker, f"input {number + 1}", partial(reading_one, number), line)


def clipped_to(maker: Maker, what: str, bounds: tuple[float | None, float | None]) -> Change:
    """Return the change that clips a layer's input or output."""
    apply = SIDES[what](lambda x: np.clip(x, *bounds))
    return maker.change(
        "extra", f"its {what} is {show_bounds(*bounds)}, which Keras does not do", apply
    )


def show_bounds(low: float | None, high: float | None) -> str:
    """Say between which numbers values are clipped."""
    bounds = (("at least", low), ("at most", high))
    return f"clipped: {' and '.join(f'{w} {x:.6g}' for w, x in bounds if x is not None)}"


def reordered(maker: Maker, what: str, order: tuple[int, ...]) -> Change:
    """Return the change that gives the features of a layer's input or output in another order."""
    apply = SIDES[what](lambda x: x[..., list(order)])
    words = f"the features of its {what} come in the order {', '.join(map(str, order))}"
    return maker.change("flipped", words, apply)


def added_to(maker: Maker, values: Array) -> Change:
    """Return the change that adds the same values to a layer's output in all rows."""
    words = "the same values are added to its output in all rows (such as a position encoding), "
    words += "which Keras does not do"
    return maker.change("extra", words, followed_by(values.__add__))


def _on_a_line(maker: Maker, what: str, around: Around, line: tuple[float, float]) -> Change:
    words = show_line(*line)
    words = f"its {what}: {words}" if line[1] else f"its {what} is {words}"
    return maker.change("extra", words, around(partial(on_line, *line)))


def show_line(factor: float, offset: float) -> str:
    """Say by what values are multiplied, and what is added to them."""
    done = [f"multiplied by {factor:.6g}"] * (not np.isclose(factor, 1))
    return " and ".join([*done, *[f"{offset:.6g} is added to it"] * bool(offset)])


def on_line(factor: float, offset: float, x: Array) -> Array:
    """Compute a x + b."""
    return factor * x + offset


def _times(factor: float, y: Array) -> Array:
    return factor * y


def _scaled_by_width(power: float, call: LayerCall) -> Result:
    output, out_mask = call.run()
    first = next(iter(leaves(call.inputs)))
    width = output.shape[-1] if call.layer.class_name == "Embedding" else np.shape(first)[-1]
    return output * width**power, out_mask
