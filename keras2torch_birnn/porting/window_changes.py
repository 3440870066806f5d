"""Known mistakes with the windows of convolutions and poolings, as changes to try.

x: the input (B, *T, C). A window is ``extent`` steps long, and starts ``stride`` steps after the
one before it; the first one starts in the padding, if there is any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from keras2torch_birnn.porting.axis_changes import RESHAPED, reshaped
from keras2torch_birnn.porting.changes import (
    Apply,
    Change,
    LayerCall,
    Maker,
    configured,
    followed_by,
    reading,
    weighted_one,
)
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.reference.windows import window_starts
from keras2torch_birnn.spec import Array, LayerSpec

# What Keras pads in front, and in front and behind -> what is padded in front
Front: TypeAlias = Callable[[int, int], int]
# Steps, the extent and the stride of windows -> what is padded in front and behind
Margins: TypeAlias = Callable[[int, int, int], tuple[int, int]]
# How far in front of the input the first window starts at most, in the trials.
_FARTHEST = 8
# Name for NumPy, and what torch calls it
BORDERS = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}


def convolution_changes(maker: Maker) -> Iterator[Change]:
    """Yield reversed kernels, wrong places of windows, and wrong values outside of the input."""
    own = maker.config["padding"]
    for name in ("same", "valid", "causal"):
        if name != own:
            words = f"padding {name}, Keras has {own}"
            yield maker.change("convolution padding", words, configured(padding=name))
    yield from _reversal_changes(maker)
    yield from _filter_changes(maker)
    rates = tuple(maker.config["dilation_rate"])
    for other in dict.fromkeys((1, *(rate // 2 for rate in rates), *(2 * rate for rate in rates))):
        if other and (moved := tuple(other for _ in rates)) != rates:
            words = f"its dilation is {other}, Keras has {_listed(rates)}"
            yield maker.change("dilation", words, configured(dilation_rate=moved))
    yield from _group_changes(maker)
    yield from _stride_changes(maker)
    yield from _later_windows(maker)
    for mode, name in BORDERS.items() if own != "valid" else ():
        words = f"its padding repeats values of the input ({name}), Keras pads with zeros"
        apply = _padded(partial(np.pad, mode=mode))
        yield maker.change("convolution padding", words, apply)
    for words, place in _fronts(maker):
        yield maker.change("convolution padding", words, _padded(np.pad, place))
    for words, margins in _margins(maker):
        words = f"{words}, Keras has {own}"
        yield maker.change("convolution padding", words, partial(_with_margins, margins))


def _group_changes(maker: Maker) -> Iterator[Change]:
    """Yield input channels that take turns in the groups, where Keras has one group after another.

    The other way round, too.
    """
    groups = maker.config.get("groups", 1)
    if groups < 2:
        return
    words = "its groups take the input channels in turn, in Keras each has its own in one piece"
    for count in dict.fromkeys((groups, maker.layer.weights["kernel"].shape[-2])):
        turns = partial(_in_turn, count)
        yield maker.change("axes", words, reading(turns))
    words = "the output channels of its groups take turns, Keras has them group by group"
    yield maker.change("axes", words, followed_by(partial(_in_turn, groups)))


def _in_turn(count: int, x: Array) -> Array:
    """Read the last axis as if it had been written with its two parts in the other order."""
    apart = x.reshape(*x.shape[:-1], -1, count)
    return apart.swapaxes(-1, -2).reshape(x.shape)


def _filter_changes(maker: Maker) -> Iterator[Change]:
    """Yield the filters of all channels in another order: Keras has those of one channel first."""
    kernel = maker.layer.weights.get("depthwise_kernel")
    if kernel is None or min(channels := kernel.shape[-2:]) < 2:
        return
    words = "its depthwise kernel has the filter before the channel, Keras the channel first"
    turn = weighted_one("depthwise_kernel", partial(_turned, channels))
    yield maker.change("axes", words, turn)
    words = "the channels behind its depthwise kernel come filter by filter, Keras has all filters "
    words += "of one channel first"
    if "pointwise_kernel" in maker.layer.weights:
        moved = weighted_one("pointwise_kernel", partial(_in_turn_of_rows, channels))
        yield maker.change("axes", words, moved)
        return
    apart = followed_by(
        lambda y: y.reshape(*y.shape[:-1], *channels).swapaxes(-1, -2).reshape(y.shape)
    )
    yield maker.change("axes", words, apart)


def _in_turn_of_rows(channels: tuple[int, ...], kernel: Array) -> Array:
    """Read the rows of a kernel (..., channels * filters, F) as if they came filter by filter."""
    apart = np.moveaxis(kernel, -2, -1)
    back = apart.reshape(*apart.shape[:-1], *channels[::-1]).swapaxes(-1, -2)
    return np.moveaxis(back.reshape(apart.shape), -1, -2)


def _turned(channels: tuple[int, ...], kernel: Array) -> Array:
    """Read the last two axes of a kernel as if they had been written in the other order."""
    turned: Array = kernel.swapaxes(-1, -2).reshape(*kernel.shape[:-2], *channels)
    return turned


def transposed_changes(maker: Maker) -> Iterator[Change]:
    """Yield steps of a transposed convolution that are cut elsewhere, and a reversed kernel."""
    yield from _reversal_changes(maker)
    own = maker.config["padding"]
    for before in range(min(max(_extents(maker.layer)), _FARTHEST)):
        words = f"it cuts {before} {'step' if before == 1 else 'steps'} in front, Keras has {own}"
        yield maker.change("convolution padding", words, partial(_cut, before))


def _cut(before: int, call: LayerCall) -> Result:
    """Let a transposed convolution leave out other steps at the beginning of each axis."""
    right, out_mask = call.run()
    if call.layer.config["data_format"] == "channels_first":
        raise ValueError("the channels come first")
    whole, _ = configured(padding="valid", output_size=None)(call.aside())
    kept = whole
    for axis, size in enumerate(right.shape[1:-1], 1):
        kept = kept.take(range(before, min(before + size, kept.shape[axis])), axis=axis)
    if kept.shape != right.shape:
        raise ValueError("there are too few steps")
    return kept, out_mask


def _stride_changes(maker: Maker) -> Iterator[Change]:
    """Yield windows that begin at other distances: every step, or one behind the other."""
    extents = tuple(_extents(maker.layer))
    own = tuple(maker.config["strides"] or extents)
    others = (tuple(1 for _ in own), extents, tuple(2 for _ in own), own[::-1])
    for strides in dict.fromkeys(others):
        if strides != own:
            words = f"its strides are {_listed(strides)}, Keras has {_listed(own)}"
            yield maker.change("strides", words, configured(strides=strides))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _reversal_changes(maker: Maker) -> Iterator[Change]:
    """Yield kernels that are reversed: along their steps, along one axis of an image or both."""
    count = len(maker.config["kernel_size"])
    axes = {"its steps": (0,)} if count == 1 else _REVERSED
    names = ("kernel", "depthwise_kernel")
    kernels = {name: maker.layer.weights[name] for name in names if name in maker.layer.weights}
    for name in kernels:
        for along, some in axes.items():
            turn = weighted_one(name, partial(np.flip, axis=some))
            yield maker.change("direction", f"the {name} is reversed along {along}", turn)
    for name, kernel in kernels.items():
        if count == 2 and kernel.shape[0] == kernel.shape[1]:
            turn = weighted_one(name, lambda kernel: kernel.swapaxes(0, 1))
            words = f"height and width of the {name} are exchanged (it is square)"
            yield maker.change("not transposed", words, turn)
    for name, kernel in kernels.items():
        if min(kernel.shape[-2:]) < 2:
            continue
        yield maker.change("reshaped", f"the {name} {RESHAPED}", weighted_one(name, reshaped))
        if kernel.shape[-2] == kernel.shape[-1]:
            words = f"input and output channels of the {name} are exchanged (they are as many)"
            turn = weighted_one(name, lambda kernel: kernel.swapaxes(-1, -2))
            yield maker.change("not transposed", words, turn)


_REVERSED: Mapping[str, tuple[int, ...]] = {
    "both axes": (0, 1),
    "its first axis": (0,),
    "its second axis": (1,),
}


def pooling_changes(maker: Maker) -> Iterator[Change]:
    """Yield another padding of a pooling, and zeros that count as values."""
    yield from _stride_changes(maker)
    sizes = tuple(maker.config["pool_size"])
    strides = maker.config["strides"] or sizes
    if sizes != sizes[::-1]:
        words = "height and width of its windows are exchanged"
        turned = configured(pool_size=sizes[::-1], strides=tuple(strides)[::-1])
        yield maker.change("pool size", words, turned)
    for more in (-1, 1):
        size = tuple(max(1, one + more) for one in sizes)
        words = f"its windows have the size {_listed(size)}, Keras' {_listed(sizes)}"
        yield maker.change("pool size", words, configured(pool_size=size, strides=strides))
    own = maker.config["padding"]
    for name, words in _PADDINGS.items():
        if name != own:
            words = f"{words}, Keras has {own}"
            yield maker.change("pooling padding", words, configured(padding=name))
    if own == "same":
        words = "the zeros of its padding count as values, Keras leaves them out"
        yield maker.change("pooling padding", words, _padded(np.pad))
    yield from _later_windows(maker)
    every = "takes the first step of each window (every so many steps), Keras has "
    yield maker.change("other operation", every + maker.layer.class_name, _first_of_windows)
    largest = maker.layer.class_name.startswith("Max")
    for words, place in _fronts(maker):
        lowest = _padded(partial(np.pad, constant_values=-np.inf), place)
        yield maker.change("pooling padding", words, lowest if largest else _averaged(place))
    filled = {"a last window that is not full counts, too (ceil_mode=True)": _filled}
    for words, margins in (*(filled.items() if own == "valid" else ()), *_margins(maker)):
        for counted, also in ((False, ""), (True, ", and what is padded counts as zeros")):
            if not (counted and largest):
                told = f"{words}{also}, Keras has {own}"
                apply = partial(_with_margins, margins, counted=counted)
                yield maker.change("pooling padding", told, apply)


def _later_windows(maker: Maker) -> Iterator[Change]:
    """Yield windows of which the first one begins later, so that what is left over is in front."""
    by = max(maker.config["strides"] or maker.config["pool_size"])
    for first in range(1, min(by, _FARTHEST)) if maker.config["padding"] == "valid" else ():
        words = f"its windows begin at step {first}: what is left over is dropped in front, "
        later = reading(partial(_from_step, first))
        yield maker.change("strides", f"{words}Keras drops it at the end", later)


def _from_step(first: int, x: Array) -> Array:
    return x[:, first:]


def _first_of_windows(call: LayerCall) -> Result:
    """Take the first place of each window of a pooling."""
    output, out_mask = call.run()
    strides = call.layer.config["strides"] or call.layer.config["pool_size"]
    counts = zip(output.shape[1:], strides, strict=False)
    part = (slice(None), *(slice(None, count * by, by) for count, by in counts))
    return np.asarray(call.inputs)[part], out_mask


def _fronts(maker: Maker) -> Iterator[tuple[str, Front]]:
    """Yield other numbers of steps in front of the input, in words and as what gives them."""
    own = maker.config["padding"]
    for before in range(min(max(_extents(maker.layer)), _FARTHEST)):
        words = f"it pads {before} {'step' if before == 1 else 'steps'} in front, Keras has {own}"
        yield words, partial(_as_many, before)
    if own == "same":
        yield "what it pads in front Keras pads behind, and the reverse", _other_side


def _margins(maker: Maker) -> Iterator[tuple[str, Margins]]:
    """Yield steps that are padded at both ends or at one, whatever number of windows follows."""
    for most in range(1, min(max(_extents(maker.layer)), _FARTHEST)):
        steps = f"{most} {'step' if most == 1 else 'steps'}"
        for (front, back), where in _ENDS.items():
            words = f"it pads {steps} {where} and keeps all windows"
            yield words, partial(_at_ends, most * front, most * back)


_ENDS = {(1, 1): "at each end", (1, 0): "in front", (0, 1): "behind"}


def _at_ends(front: int, back: int, steps: int, extent: int, stride: int) -> tuple[int, int]:
    return min(front, extent - 1), min(back, extent - 1)


def _filled(steps: int, extent: int, stride: int) -> tuple[int, int]:
    """Return what makes the last window full that begins inside of the input."""
    lacking = -(steps - extent) % stride
    return 0, lacking if lacking < extent else 0


def _with_margins(margins: Margins, call: LayerCall, *, counted: bool = False) -> Result:
    """Pad both ends, then take all full windows. counted: an average counts zeros there."""
    if call.layer.config["data_format"] == "channels_first":
        raise ValueError("the channels come first")
    x = call.context.number(np.asarray(call.inputs))
    extents = _extents(call.layer)
    places = zip(x.shape[1:-1], extents, call.layer.config["strides"] or extents, strict=True)
    widths = [(0, 0), *(margins(*one) for one in places), (0, 0)]
    largest = call.layer.class_name.startswith("Max")
    whole = configured(padding="valid")
    padded = np.pad(x, widths, constant_values=-np.inf if largest else 0)
    output, _ = whole(call._replace(inputs=padded, mask=None))
    if call.layer.class_name.startswith("Average") and not counted:
        shares = np.pad(np.ones_like(x), widths)
        output = output / whole(call.aside()._replace(inputs=shares, mask=None))[0]
    return output, call.aside().run()[1]


def _as_many(before: int, own: int, whole: int) -> int:
    return before


def _other_side(own: int, whole: int) -> int:
    return whole - own


def _averaged(place: Front) -> Apply:
    """Pad the input of an average, and leave the padding out of it."""
    with_zeros = _padded(np.pad, place)

    def apply(call: LayerCall) -> Result:
        output, out_mask = with_zeros(call)
        shares, _ = with_zeros(call.aside()._replace(inputs=np.ones_like(call.inputs), mask=None))
        return output / shares, out_mask

    return apply


_PADDINGS = {
    "same": "a last window that is not full counts, too (padding same)",
    "valid": "a last window that is not full is left out (padding valid)",
}


def _extents(layer: LayerSpec) -> Sequence[int]:
    config = layer.config
    if "pool_size" in config:
        return tuple(config["pool_size"])
    sizes = zip(config["kernel_size"], config["dilation_rate"], strict=True)
    return [(size - 1) * rate + 1 for size, rate in sizes]


def _padded(pad: Callable[..., Any], place: Front | None = None) -> Apply:
    """Pad the input, then compute without padding; as many windows as in Keras.

    place: where the first window starts; None: where Keras has it.
    """

    def apply(call: LayerCall) -> Result:
        config = call.layer.config
        if config["data_format"] == "channels_first":
            raise ValueError("the channels come first")
        x = call.context.number(np.asarray(call.inputs))
        extents = _extents(call.layer)
        strides = config["strides"] or extents
        widths, wanted = [(0, 0)], [slice(None)]
        for steps, extent, stride in zip(x.shape[1:-1], extents, strides, strict=True):
            starts = window_starts(steps, extent, stride, config["padding"])
            length, front = (len(starts) - 1) * stride + extent, -starts[0]
            if place is not None:
                front = min(place(front, max(0, length - steps)), extent - 1)
            widths.append((front, max(0, length - steps - front)))
            wanted.append(slice(0, length))
        padded: Array = pad(x, [*widths, (0, 0)])[tuple(wanted)]
        _, out_mask = call.aside().run()
        output, _ = configured(padding="valid")(call._replace(inputs=padded, mask=None))
        return output, out_mask

    return apply
