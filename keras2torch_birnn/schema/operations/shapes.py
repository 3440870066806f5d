"""Output shapes of operations. A size None is free, a shape None is unknown.

Here, other than in layers, any axis may be the batch's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from keras2torch_birnn.limits import MAX_OPERATION_RANK, MAX_OPERATION_VALUES
from keras2torch_birnn.schema.options import ACTIVATION_OPTIONS
from keras2torch_birnn.schema.row import Config, ShapeError
from keras2torch_birnn.spec import Shape, Structure

# The output of a call from the options and the shape of each argument.
Output = Callable[..., Structure]


@dataclass(frozen=True)
class OfUnknown:
    """Rule that takes arguments of unknown shapes; other rules are not asked then."""

    rule: Output

    def __call__(self, config: Config, *inputs: Shape | None) -> Structure:
        """Return the shape of the output."""
        return self.rule(config, *inputs)


def checked(output: Output, arguments: Sequence[str]) -> Callable[[Config, Structure], Structure]:
    """Wrap an output rule: refuse results that are too large before they are computed."""
    tensors = [name for name in arguments if name != "sizes"]
    several = len(tensors) > 1 or tensors == ["xs"]

    def shape(config: Config, inputs: Structure) -> Structure:
        given = inputs if several or is_list(inputs) else (inputs,)
        needed = given if tensors == ["xs"] else given[: len(tensors)]
        if None in needed and not isinstance(output, OfUnknown):
            return None
        out = output(config, *given)
        for one in out if is_list(out) else (out,):
            if one is not None:
                bounded([size for size in one if size is not None])
            if one is not None and len(one) > MAX_OPERATION_RANK:
                raise ShapeError(f"a result of {len(one)} dimensions")
        return out

    return shape


def bounded(sizes: Sequence[int]) -> None:
    """Refuse a result of at least these sizes if it is too large."""
    if math.prod(sizes) > MAX_OPERATION_VALUES:
        raise ShapeError(f"a result of {list(sizes)} is larger than {MAX_OPERATION_VALUES} numbers")


def is_list(inputs: Structure) -> bool:
    """Tell whether these are the shapes of several tensors, not one shape."""
    return isinstance(inputs, tuple) and any(isinstance(part, tuple) for part in inputs)


def place(axis: int, rank: int) -> int:
    """Return the axis counted from the start."""
    if not -rank <= axis < rank:
        raise ShapeError(f"axis {axis} of a tensor of {rank} dimensions")
    return axis % rank


def places(axes: Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Return axes counted from the start, sorted; None: all of them."""
    found = sorted(place(axis, rank) for axis in (range(rank) if axes is None else axes))
    if len(set(found)) < len(found):
        raise ShapeError(f"axes {axes} name one twice")
    return tuple(found)


def broadcast(*shapes: Shape) -> Shape:
    """Broadcast as NumPy does; a free size and a fixed one give the fixed one."""
    rank = max(map(len, shapes))
    out: list[int | None] = []
    for sizes in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        fixed = {size for size in sizes if size not in (1, None)}
        if len(fixed) > 1:
            shown = ", ".join(str(list(shape)) for shape in shapes)
            raise ShapeError(f"shapes {shown} do not fit each other")
        out.append(fixed.pop() if fixed else None if None in sizes else 1)
    return tuple(out)


def elementwise(config: Config, *inputs: Shape) -> Shape:
    """Broadcast the arguments of an elementwise operation."""
    return broadcast(*inputs)


@OfUnknown
def chosen(config: Config, *inputs: Shape | None) -> Shape | None:
    """Broadcast a condition and two tensors; TensorFlow's old Select does not broadcast."""
    known = [shape for shape in inputs if shape is not None]
    shape = broadcast(*known) if len(known) == len(inputs) else None
    if not config["broadcasts"] and any(one != shape for one in inputs):
        raise ShapeError("a choice by rows is not supported")
    return shape


def same(config: Config, shape: Shape) -> Shape:
    """Return the argument's shape."""
    return shape


def activated(config: Config, shape: Shape) -> Shape:
    """Return the argument's shape; refuse an axis that it does not have."""
    function = config["function"]
    name, options = (function, {}) if isinstance(function, str) else (function["name"], function)
    if "axis" in ACTIVATION_OPTIONS.get(name, {}):
        place(options.get("axis", -1), len(shape))
    return shape


def along_axis(config: Config, shape: Shape) -> Shape:
    """Return the argument's shape; refuse an axis that it does not have."""
    axis = config["axis"]
    if axis is not None:
        places(axis if isinstance(axis, tuple) else (axis,), len(shape))
    return shape


def reduced(config: Config, shape: Shape) -> Shape:
    """Remove the reduced axes, or set them to 1."""
    axis = config["axis"]
    gone = places((axis,) if isinstance(axis, int) else axis, len(shape))
    if config.get("keepdims"):
        return tuple(1 if i in gone else size for i, size in enumerate(shape))
    return tuple(size for i, size in enumerate(shape) if i not in gone)


def ranked(config: Config, shape: Shape, *sizes: Shape) -> Structure:
    """Return the shapes of the k largest along the last axis and of their indices."""
    if not shape or (None not in (shape[-1], config["k"]) and shape[-1] < config["k"]):
        raise ShapeError(f"the {config['k']} largest of {list(shape)}")
    return ((*shape[:-1], config["k"]),) * 2


def matmul(config: Config, a: Shape, b: Shape) -> Shape:
    """Multiply (..., m, k) by (..., k, n)."""
    if not a or not b:
        raise ShapeError("a single number in a matrix product")
    if config["transpose_a"] and len(a) > 1:
        a = (*a[:-2], a[-1], a[-2])
    if config["transpose_b"] and len(b) > 1:
        b = (*b[:-2], b[-1], b[-2])
    met = b[-2] if len(b) > 1 else b[-1]
    if None not in (a[-1], met) and a[-1] != met:
        raise ShapeError(f"matrices {list(a)} and {list(b)} do not fit each other")
    return (*broadcast(a[:-2], b[:-2]), *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


def dot(config: Config, a: Shape, b: Shape) -> Shape:
    """Multiply as ``numpy.dot``: the last axis of x with the last but one of y."""
    if not a or not b:
        return broadcast(a, b)
    met = b[-2] if len(b) > 1 else b[-1]
    if None not in (a[-1], met) and a[-1] != met:
        raise ShapeError(f"{list(a)} and {list(b)} do not fit each other")
    return (*a[:-1], *b[:-2], *(b[-1:] if len(b) > 1 else ()))


@OfUnknown
def einsum(config: Config, *inputs: Shape | None) -> Shape | None:
    """Compute the shape of an einsum: letters are axes, an ellipsis broadcast axes."""
    left, output = config["subscripts"].split("->")
    terms = left.split(",")
    if len(terms) != len(inputs):
        raise ShapeError(f"{len(inputs)} tensors for the {len(terms)} terms of {left!r}")
    known = [shape for shape in inputs if shape is not None]
    if len(known) < len(inputs):
        return None
    sizes: dict[str, int | None] = {}
    rests: list[Shape] = []
    for term, shape in zip(terms, known, strict=True):
        letters = term.replace("...", "")
        before = len(term.split("...")[0])
        rest = len(shape) - len(letters)
        if rest < 0 or (rest > 0 and "..." not in term):
            raise ShapeError(f"{term!r} for a tensor of {len(shape)} dimensions")
        rests.append(shape[before : before + rest])
        for letter, size in zip(letters, (*shape[:before], *shape[before + rest :]), strict=True):
            held = sizes.get(letter)
            if None not in (held, size) and held != size:
                raise ShapeError(f"axis {letter!r} is {held} and {size}")
            sizes[letter] = held if size is None else size
    spread = broadcast(*rests)
    out: list[int | None] = []
    for part in re.findall(r"\.\.\.|.", output):
        out += spread if part == "..." else [sizes[part]]
    return tuple(out)
