"""Known mistakes with the order of axes, as changes to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np

from keras2torch_birnn.porting.changes import Apply, Change, LayerCall, Maker, followed_by, reading
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import Array

Around: TypeAlias = Callable[[Callable[[Array], Array]], Apply]
SIDES: Mapping[str, Around] = {"input": reading, "output": followed_by}


def view_changes(maker: Maker, sides: Mapping[str, Around] | None = None) -> Iterator[Change]:
    """Yield inputs and outputs that are viewed with other axes than they have."""
    for what, around in (sides or SIDES).items():
        for words, view in _VIEWS.items():
            yield maker.change("axes", f"its {what} is {words}", around(view))


def _with_more(axes: tuple[int, ...], x: Array) -> tuple[int, ...]:
    """Return an order of the first axes as one of all."""
    if x.ndim < len(axes):
        raise ValueError("other axes")
    return (*axes, *range(len(axes), x.ndim))


def _viewed(axes: tuple[int, ...], x: Array) -> Array:
    """Read an array (B, T, F) that lies in memory in the order of other axes as if it did not."""
    axes = _with_more(axes, x)
    viewed: Array = x.transpose(axes).reshape(x.shape)
    return viewed


def _viewed_back(axes: tuple[int, ...], x: Array) -> Array:
    """View an array (B, T, F) as if it lay in memory in the order of other axes."""
    axes = _with_more(axes, x)
    viewed: Array = x.reshape([x.shape[axis] for axis in axes]).transpose(np.argsort(axes))
    return viewed


_VIEWS: Mapping[str, Callable[[Array], Array]] = {
    "(batch, features, steps), viewed as (batch, steps, features): transpose it": (
        partial(_viewed, (0, 2, 1))
    ),
    "(steps, batch, features), viewed as (batch, steps, features): transpose it": (
        partial(_viewed, (1, 0, 2))
    ),
    "(batch, steps, features), viewed as (batch, features, steps): transpose it": (
        partial(_viewed_back, (0, 2, 1))
    ),
    "(batch, steps, features), viewed as (steps, batch, features): transpose it": (
        partial(_viewed_back, (1, 0, 2))
    ),
}


def joined_row_changes(maker: Maker) -> Iterator[Change]:
    """Yield windows of a TimeDistributed layer that run on from one of its steps to the next."""
    words = "its windows run on from one step of TimeDistributed to the next, Keras pads each"
    yield maker.change("axes", words, _in_one_row)


def _in_one_row(call: LayerCall) -> Result:
    output, out_mask = call.run()
    x, y = np.asarray(call.inputs), np.asarray(output)
    whole, _ = call.aside()._replace(inputs=x.reshape(len(x), 1, -1, *x.shape[3:]), mask=None).run()
    return np.asarray(whole).reshape(y.shape), out_mask


def channels_first_changes(maker: Maker) -> Iterator[Change]:
    """Yield inputs that have their axes in another order."""
    for axis, other in ((1, "steps"), (2, "the last axis of an image")):
        words = (
            f"it reads features (channels) before {other}, as torch has them: Keras has them last "
            "(transpose or permute before it)"
        )
        yield maker.change("axes", words, reading(partial(_moved_to, axis)))
    for axes in _OTHER_AXES:
        shown = ", ".join(map(str, axes))
        words = f"its input has its axes in the order {shown}: permute it before"
        yield maker.change("axes", words, reading(partial(_permuted, axes)))


def joined_step_changes(maker: Maker) -> Iterator[Change]:
    """Yield steps that are joined, or taken apart, feature by feature."""
    words = "the features of the steps that it joins (or takes apart) take turns, Keras has those "
    words = f"{words}of one step after those of another"
    yield maker.change("axes", words, partial(_joined, _taking_turns))
    words = "it joins steps that are far apart (or takes steps apart so, as chunk does), Keras "
    words += "those that follow each other"
    yield maker.change("axes", words, partial(_joined, _far_apart))


def _joined(join: Callable[[Array, int, int, bool], Array], call: LayerCall) -> Result:
    output, out_mask = call.run()
    x, y = np.asarray(call.inputs), np.asarray(output)
    narrow, wide = sorted((x.shape[-1], y.shape[-1]))
    if narrow == wide or wide % narrow or x.ndim < 3:
        raise ValueError("no steps are joined")
    return join(x, wide // narrow, narrow, wide == y.shape[-1]).reshape(y.shape), out_mask


def _taking_turns(x: Array, many: int, narrow: int, joins: bool) -> Array:
    form = (many, narrow) if joins else (narrow, many)
    return x.reshape(len(x), -1, *form).swapaxes(2, 3)


def _far_apart(x: Array, many: int, narrow: int, joins: bool) -> Array:
    form = (many, -1) if joins else (-1, many)
    return x.reshape(len(x), *form, narrow).swapaxes(1, 2)


# Orders of the axes of images (B, H, W, C), but those that are told in other words.
_OTHER_AXES = ((0, 2, 1, 3), (0, 2, 3, 1), (0, 3, 2, 1))


def _permuted(axes: tuple[int, ...], x: Array) -> Array:
    if x.ndim != len(axes):
        raise ValueError("it is no image")
    return x.transpose(axes)


def _moved_to(axis: int, x: Array) -> Array:
    if axis >= x.ndim - 1:
        raise ValueError("there is no such axis before the last one")
    return np.moveaxis(x, -1, axis)


RESHAPED = "is reshaped to the axes that torch has, where they have to be exchanged"


def reshaped(kernel: Array) -> Array:
    """View a kernel (..., in, out) in memory as torch's (out, in, ...)."""
    axes = (kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
    viewed = kernel.reshape([kernel.shape[axis] for axis in axes])
    return viewed.transpose(np.argsort(axes))
