"""Output shapes of operations that move, select or count values; see ``shapes``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from keras2torch_birnn.limits import MAX_PARTS
from keras2torch_birnn.schema.operations.shapes import OfUnknown, bounded, broadcast, place, places
from keras2torch_birnn.schema.row import Config, ShapeError
from keras2torch_birnn.spec import Constant, Shape, Structure

Sizes = Sequence[int | None]


def product(sizes: Sizes) -> int | None:
    """Return the number of values, None if a size is free."""
    fixed = [size for size in sizes if size is not None]
    return math.prod(fixed) if len(fixed) == len(sizes) else None


@OfUnknown
def reshape(config: Config, shape: Shape | None, *sizes: Shape) -> Shape | None:
    """Return the target shape, -1 worked out. A size that is an argument is free."""
    wanted = config["shape"]
    if wanted is None:
        return None
    count = None if shape is None else product(shape)
    fixed = product([size for size in wanted if size != -1])
    if count is None or fixed is None:
        return tuple(None if size == -1 else size for size in wanted)
    if count % max(fixed, 1) if -1 in wanted else count != fixed:
        raise ShapeError(f"{count} values do not fit the shape {list(wanted)}")
    return tuple(count // max(fixed, 1) if size == -1 else size for size in wanted)


def wanted(config: Config, *sizes: Shape) -> Shape | None:
    """Return the target shape that the config names."""
    shape: Shape | None = config["shape"]
    return shape


@OfUnknown
def broadcast_to(config: Config, shape: Shape | None, *sizes: Shape) -> Shape | None:
    """Return the target shape; refuse a tensor that does not broadcast to it."""
    target = config["shape"]
    if target is None:
        return None
    own = (shape or ())[::-1]
    if len(own) > len(target):
        raise ShapeError(f"{list(own[::-1])} cannot be broadcast to {list(target)}")
    out: list[int | None] = []
    for size, wish in zip_longest(own, target[::-1]):
        out.insert(0, size if wish == -1 else wish)
        if wish not in (-1, None) and size not in (1, None, wish):
            raise ShapeError(f"{list(own[::-1])} cannot be broadcast to {list(target)}")
    if -1 in target[: len(target) - len(own)]:
        raise ShapeError(f"{list(target)} asks for a size that is not there")
    return tuple(out)


def transpose(config: Config, shape: Shape) -> Shape:
    """Permute: output axis i is input axis axes[i]; None reverses the order of all axes."""
    axes = range(len(shape))[::-1] if config["axes"] is None else config["axes"]
    if places(axes, len(shape)) != tuple(range(len(shape))):
        raise ShapeError(f"axes {list(axes)} for {len(shape)} dimensions")
    return tuple(shape[axis] for axis in axes)


def swapped(config: Config, shape: Shape) -> Shape:
    """Swap two axes."""
    a, b = place(config["axis1"], len(shape)), place(config["axis2"], len(shape))
    order = list(range(len(shape)))
    order[a], order[b] = b, a
    return tuple(shape[i] for i in order)


def squeezed(config: Config, shape: Shape) -> Shape:
    """Remove axes of size 1."""
    axes = config["axis"]
    if axes is None:
        if None in shape:
            raise ShapeError(f"which axes of {list(shape)} are 1 is not known")
        return tuple(size for size in shape if size != 1)
    gone = places(axes, len(shape))
    if any(shape[i] not in (1, None) for i in gone):
        raise ShapeError(f"axes {list(axes)} of {list(shape)} are not of size 1")
    return tuple(size for i, size in enumerate(shape) if i not in gone)


def expanded(config: Config, shape: Shape) -> Shape:
    """Insert axes of size 1 at these positions of the output."""
    rank = len(shape) + len(config["axis"])
    new, rest = places(config["axis"], rank), iter(shape)
    return tuple(1 if i in new else next(rest) for i in range(rank))


def joined(config: Config, *inputs: Shape) -> Shape:
    """Concatenate along the axis."""
    ranks = {len(shape) for shape in inputs}
    if len(ranks) > 1:
        raise ShapeError(f"tensors of {sorted(ranks)} dimensions cannot be concatenated")
    axis = place(config["axis"], len(inputs[0]))
    out: list[int | None] = []
    for i, sizes in enumerate(zip(*inputs, strict=True)):
        fixed = {size for size in sizes if size is not None}
        if i != axis and len(fixed) > 1:
            shown = ", ".join(str(list(shape)) for shape in inputs)
            raise ShapeError(f"shapes {shown} differ in more than axis {axis}")
        out.append(total(sizes) if i == axis else fixed.pop() if fixed else None)
    return tuple(out)


def total(sizes: Sizes) -> int | None:
    """Return the sum of sizes, None if one is free."""
    fixed = [size for size in sizes if size is not None]
    return sum(fixed) if len(fixed) == len(sizes) else None


def stacked(config: Config, *inputs: Shape) -> Shape:
    """Stack along a new axis."""
    if len({len(shape) for shape in inputs}) > 1:
        raise ShapeError("tensors of several ranks cannot be stacked")
    axis = place(config["axis"], len(inputs[0]) + 1)
    together = broadcast(*inputs)
    if any(None not in (a, b) and a != b for s in inputs for a, b in zip(s, together, strict=True)):
        raise ShapeError("tensors of several shapes cannot be stacked")
    return (*together[:axis], len(inputs), *together[axis:])


@OfUnknown
def split(config: Config, shape: Shape | None) -> Structure:
    """Split an axis into a number of parts, into parts of given sizes, or at given positions."""
    parts, how = config["sections"], config["by"]
    if isinstance(parts, int) != (how == "count"):
        raise ShapeError(f"sections {parts}, which are no {how}")
    if shape is None:
        return None
    axis = place(config["axis"], len(shape))
    return tuple(
        (*shape[:axis], size, *shape[axis + 1 :]) for size in _parts(parts, how, shape[axis])
    )


def _parts(parts: Any, how: str, whole: int | None) -> tuple[int | None, ...]:
    if how == "count":
        if whole is not None and whole % parts:
            raise ShapeError(f"{whole} in {parts} equal parts")
        each: int | None = None if whole is None else whole // parts
        return tuple(each for _ in range(parts))
    if how == "sizes":
        if parts.count(-1) > 1 or (whole is not None and -1 not in parts and sum(parts) != whole):
            raise ShapeError(f"parts {list(parts)} of {whole}")
        rest = None if whole is None else whole - sum(part for part in parts if part != -1)
        if rest is not None and rest < 0:
            raise ShapeError(f"parts {list(parts)} of {whole}")
        known: list[int] = list(parts)
        return tuple(rest if part == -1 else part for part in known)
    if any(a > b for a, b in zip((0, *parts), parts, strict=False)):
        raise ShapeError(f"places {list(parts)} do not go up from 0")
    if whole is not None and parts and parts[-1] > whole:
        raise ShapeError(f"places {list(parts)} in {whole}")
    sizes: list[int] = [b - a for a, b in zip((0, *parts), parts, strict=False)]
    return (*sizes, None if whole is None else whole - (parts[-1] if parts else 0))


@OfUnknown
def unstacked(config: Config, shape: Shape | None) -> Structure:
    """Return one shape for each index of an axis."""
    if shape is None:
        raise ShapeError("the number of tensors is not known")
    axis = place(config["axis"], len(shape))
    count = shape[axis] if config["num"] is None else config["num"]
    if count is None or shape[axis] not in (None, count):
        raise ShapeError(f"axis {axis} of {list(shape)} as {config['num']} tensors")
    if count > MAX_PARTS:
        raise ShapeError(f"{count} tensors, more than {MAX_PARTS}")
    return ((*shape[:axis], *shape[axis + 1 :]),) * count


def tiled(config: Config, shape: Shape, *counts: Shape) -> Shape | None:
    """Multiply the size of every axis by its number of repeats."""
    times = config["shape"]
    if times is None:
        return None
    bounded([n * (s or 1) for s, n in zip(shape[::-1], times[::-1], strict=False) if n])
    rank = max(len(shape), len(times))
    sizes = (1,) * (rank - len(shape)) + shape
    times = (1,) * (rank - len(times)) + times
    return tuple(None if None in (s, n) else s * n for s, n in zip(sizes, times, strict=True))


def repeated(config: Config, shape: Shape) -> Shape:
    """Repeat each value along an axis."""
    axis = config["axis"]
    bounded([config["repeats"], *(size for size in shape if size is not None)])
    if axis is None:
        count = product(shape)
        return (None if count is None else count * config["repeats"],)
    axis = place(axis, len(shape))
    own = shape[axis]
    return (*shape[:axis], None if own is None else own * config["repeats"], *shape[axis + 1 :])


def padded(config: Config, shape: Shape) -> Shape:
    """Pad every axis before and after."""
    around = config["pad_width"]
    around = around * len(shape) if len(around) == 1 else around
    if len(around) != len(shape):
        raise ShapeError(f"pad_width for {len(around)} of {len(shape)} dimensions")
    bounded([(s or 1) + sum(a) for s, a in zip(shape, around, strict=True)])
    return tuple(None if s is None else s + sum(a) for s, a in zip(shape, around, strict=True))


def sizes_of(config: Config, shape: Shape) -> Shape:
    """Return the shape of a tensor's shape: one integer for each axis."""
    return (len(shape),)


def counted(config: Config, *sizes: Shape) -> Shape:
    """Return the length of a range of integers, free if only known at run time."""
    start, stop, step = config["bounds"]
    if any(isinstance(bound, str) for bound in (start, stop, step)):
        return (None,)
    return (len(range(start, stop, step)),)


# ---- values by index -----------------------------------------------------------------------------


def items(config: Config, shape: Shape, *sizes: Shape) -> Shape:
    """Index: ``x[key]`` with integers, slices, new axes, an ellipsis."""
    key = config["key"]
    named = sum(part not in (None, "...") for part in key)
    if named > len(shape):
        raise ShapeError(f"{named} indices into {len(shape)} dimensions")
    if "..." not in key:
        key = (*key, "...")
    out: list[int | None] = []
    axis = 0
    for part in key:
        if part == "...":
            rest = len(shape) - named
            out += shape[axis : axis + rest]
            axis += rest
        elif part is None:
            out.append(1)
        else:
            if isinstance(part, tuple):
                out.append(_sliced(part, shape[axis]))
            elif isinstance(part, int):
                _within(part, shape[axis])
            axis += 1
    return tuple(out)


def _within(index: int, size: int | None) -> None:
    if size is not None and not -size <= index < size:
        raise ShapeError(f"index {index} into an axis of size {size}")


def _sliced(part: tuple[Any, Any, Any], size: int | None) -> int | None:
    start, stop, step = part
    if size is None:
        return None
    if any(isinstance(bound, str) for bound in part):
        return None
    return len(range(*slice(start, stop, step).indices(size)))


def taken(config: Config, shape: Shape, indices: Shape) -> Shape:
    """Take rows by index: the shape of the indices replaces the axis."""
    if config["axis"] is None:
        return tuple(indices)
    axis, batch = place(config["axis"], len(shape)), config["batch_dims"]
    if not 0 <= batch <= min(axis, len(indices)):
        raise ShapeError(f"batch_dims {batch} for axis {axis}")
    return (*shape[:axis], *indices[batch:], *shape[axis + 1 :])


def one_hot(config: Config, shape: Shape) -> Shape:
    """Add an axis of ``depth``."""
    axis = place(config["axis"], len(shape) + 1)
    return (*shape[:axis], config["depth"], *shape[axis:])


def sequence_mask(config: Config, shape: Shape, *sizes: Shape) -> Shape:
    """Add a last axis of ``maxlen``."""
    return (*shape, config["maxlen"])


# ---- indices that a file holds -------------------------------------------------------------------


def check_indices(
    name: str, config: Config, args: Sequence[Any], inputs: Sequence[Structure]
) -> None:
    """Refuse constant indices that point beyond an axis whose size is known.

    Raises:
        ShapeError: some do.
    """
    if name != "ops.Take" or not isinstance(inputs[0], tuple):
        return
    axis, shape, given = config["axis"], inputs[0], args[1]
    size = product(shape) if axis is None else shape[place(axis, len(shape))]
    for index in given.values if isinstance(given, Constant) else (given,):
        if isinstance(index, int):
            _within(index, size)
