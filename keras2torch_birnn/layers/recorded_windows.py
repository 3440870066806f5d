"""Convolutions and pooling of torch as operations of the native library."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from keras2torch_birnn.layers.recorded_values import NotRecordedError, Value, Values, only_floats
from keras2torch_birnn.rnn.native.codes import POOLINGS

# Channels of a convolution that the library computes at once.
_CHANNELS_AT_ONCE = 6


def _two(numbers: Sequence[int], missing: int) -> list[int]:
    """Return one number for each of two axes; ``missing`` stands for the first of a single one."""
    return [missing, *numbers][-2:]


class _Axis(NamedTuple):
    """A convolution along one axis."""

    size: int
    kernel: int
    out: int
    step: int
    pad: int
    apart: int

    @property
    def places(self) -> list[int]:
        """How far behind a window's first number each of its numbers is."""
        return [i * self.apart for i in range(self.kernel)]

    @property
    def length(self) -> int:
        """Count the numbers that are read: of every step-th one, with padding."""
        return self.out + self.places[-1] // self.step

    def part(self, first: int) -> tuple[slice, slice]:
        """Return which of every step-th number, from the first on, are no padding; in the input."""
        begin = -(-max(0, self.pad - first) // self.step)
        at = begin * self.step + first - self.pad
        count = max(0, min(-(-(self.size - at) // self.step), self.length - begin))
        return slice(begin, begin + count), slice(at, at + count * self.step, self.step)


def convolution(
    r: Values,
    result: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    """Record a convolution along one axis or two."""
    only_floats(x, weight, *(() if bias is None else (bias,)))
    filters = r.value(weight)
    known = filters.meta.is_contiguous() and weight.dim() == x.dim() <= 4
    if transposed or groups != 1 or not (known and x.numel() and result.numel()):
        raise NotRecordedError("a convolution")
    value = r.value(x)
    value = value._replace(meta=value.meta.unsqueeze(2)) if x.dim() == 3 else value
    fields = (value.meta.shape[2:], weight.shape[2:], result.shape[2:], stride, padding, dilation)
    pairs = [
        _two(field, missing) for field, missing in zip(fields, (1, 1, 1, 1, 0, 1), strict=True)
    ]
    axes = [_Axis(*numbers) for numbers in zip(*pairs, strict=True)]
    planes, offsets = _planes(r, value, axes)
    images, channels = result.shape[:2]
    distance, of_channel, row, _ = planes.meta.stride()
    terms = [c * of_channel + at for c in range(weight.shape[1]) for at in offsets]
    to = r.new((channels, images, *result.shape[2:]))
    rows, columns = axes[0].out, axes[1].out
    positions = -(-((rows - 1) * row + columns) // r.lanes) * r.lanes
    words = (
        *(images, channels, len(terms), rows, columns, row, planes.operand(), distance),
        *(filters.operand(), 0 if bias is None else r.dense(r.value(bias)).operand()),
        *(to.operand(), ~r.writer.reserve(_CHANNELS_AT_ONCE * positions), *terms),
    )
    r.writer.emit("convolve", words, images * channels * len(terms) * positions)
    return to._replace(meta=to.meta.transpose(0, 1))


def _planes(r: Values, x: Value, axes: Sequence[_Axis]) -> tuple[Value, list[int]]:
    """Return padded planes, and how far behind a window's first number its numbers are in memory.

    The numbers at which neighbouring windows begin are neighbours: of an axis with steps of s, a
    plane holds every s-th number, then every s-th from the second on, and so on.
    """
    images, channels, _, width = x.meta.shape
    row = x.meta.stride(2)
    plain = (
        x.kind == "workspace"
        and x.meta.stride(3) == 1
        and {(a.step, a.pad) for a in axes} == {(1, 0)}
    )
    if plain and (axes[0].out == 1 or width <= row < 2 * width):
        return x, [i * row + j for i, j in itertools.product(*(axis.places for axis in axes))]
    steps, lengths = [axis.step for axis in axes], [axis.length for axis in axes]
    whole = r.new((images, channels, *steps, *lengths))
    copies = []
    for first in itertools.product(*map(range, steps)):
        parts = [axis.part(begin) for axis, begin in zip(axes, first, strict=True)]
        inside, read = zip(*parts, strict=True)
        place, source = (..., *first, *inside), (..., *read)
        copies.append((whole.meta[place], x.meta[source]))
    if sum(to.numel() for to, _ in copies) < whole.meta.numel():
        r.map("copy", whole, (r.constant(0.0),))
    for to, part in copies:
        if to.numel():
            r.map("copy", whole._replace(meta=to), (x._replace(meta=part),))
    strides = whole.meta.stride()
    offsets = [
        i % steps[0] * strides[2]
        + j % steps[1] * strides[3]
        + i // steps[0] * strides[4]
        + j // steps[1] * strides[5]
        for i, j in itertools.product(*(axis.places for axis in axes))
    ]
    return whole._replace(meta=whole.meta[:, :, 0, 0]), offsets


def max_pool(
    r: Values,
    result: tuple[Tensor, Tensor],
    x: Tensor,
    size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil: bool = False,
) -> Value:
    """Record the maxima of windows."""
    if set(dilation) != {1} or ceil:
        raise NotRecordedError("pooling")
    return _pool(r, result[0], x, (size, stride or size, padding), "maximum")


def average_pool(
    r: Values,
    result: Tensor,
    x: Tensor,
    size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Value:
    """Record the means of windows."""
    if ceil or divisor is not None:
        raise NotRecordedError("pooling")
    divided_by = math.prod(_both(size)) if count_include_pad else 0
    return _pool(r, result, x, (size, stride or size, padding), "mean", divided_by)


def _both(numbers: Sequence[int]) -> list[int]:
    """Return one number for each of two axes; a single number is for both."""
    return list(numbers) * (3 - len(numbers))


def _pool(
    r: Values,
    result: Tensor,
    x: Tensor,
    windows: tuple[Sequence[int], Sequence[int], Sequence[int]],
    kind: str,
    divisor: int = 0,
) -> Value:
    """Record pooling.

    windows: size, steps, padding. kind: a key of ``POOLINGS``. divisor: by which a window's sum is
    divided; 0 for the number of its values that are no padding.
    """
    only_floats(x)
    if x.dim() != 4 or not (x.numel() and result.numel()):
        raise NotRecordedError("pooling")
    value = r.read_around(r.value(x))
    to = r.new_in_order(result.shape, value.meta)
    size, steps, padding = map(_both, windows)
    words = (
        *(*x.shape, *size, *result.shape[2:], *steps, *padding, POOLINGS[kind], divisor),
        *(value.operand(), *value.meta.stride(), to.operand(), *to.meta.stride()),
    )
    r.writer.emit("pool", words, 2 * result.numel() * math.prod(size))
    return to
