"""Output shapes of operations that choose values by index."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from keras2torch_birnn.schema.operations.shapes import broadcast, place
from keras2torch_birnn.schema.row import Config, ShapeError
from keras2torch_birnn.spec import Constant, Shape, Structure


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


def taken_along(config: Config, shape: Shape, indices: Shape) -> Shape:
    """Return the shape of the indices, with the other axes broadcast."""
    if len(shape) != len(indices):
        raise ShapeError(f"indices of {len(indices)} dimensions for {len(shape)}")
    axis = place(config["axis"], len(shape))
    met = broadcast(*((*s[:axis], 1, *s[axis + 1 :]) for s in (shape, indices)))
    return (*met[:axis], indices[axis], *met[axis + 1 :])


def one_hot(config: Config, shape: Shape) -> Shape:
    """Add an axis of ``depth``."""
    axis = place(config["axis"], len(shape) + 1)
    return (*shape[:axis], config["depth"], *shape[axis:])


def sequence_mask(config: Config, shape: Shape, *sizes: Shape) -> Shape:
    """Add a last axis of ``maxlen``."""
    return (*shape, config["maxlen"])


# ---- indices that a file holds -------------------------------------------------------------------

# Indices, and the size of the axis that they point into; None if that is free.
_Pointing: TypeAlias = tuple[Sequence[float], int | None]
_Rule: TypeAlias = Callable[[Config, Shape, Constant], Iterator[_Pointing]]


def check_indices(
    name: str, config: Config, args: Sequence[Any], inputs: Sequence[Structure]
) -> None:
    """Refuse constant indices that point beyond an axis whose size is known.

    Raises:
        ShapeError: some do.
    """
    if name not in _POINTING or not isinstance(inputs[0], tuple):
        return
    indices = Constant((args[1],), ()) if isinstance(args[1], int) else args[1]
    if isinstance(indices, Constant):
        for values, size in _POINTING[name](config, inputs[0], indices):
            for index in values:
                if isinstance(index, int):
                    _within(index, size)


def _along_one(config: Config, shape: Shape, indices: Constant) -> Iterator[_Pointing]:
    if config["axis"] is not None:
        yield indices.values, shape[place(config["axis"], len(shape))]
    elif None not in shape:
        yield indices.values, math.prod(size or 0 for size in shape)


_POINTING: Mapping[str, _Rule] = {
    "ops.Take": _along_one,
    "ops.TakeAlongAxis": _along_one,
}
