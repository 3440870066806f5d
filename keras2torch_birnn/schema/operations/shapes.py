"""Output shapes of operations. A size None is free, a shape None is unknown.

Here, other than in layers, any axis may be the batch's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from keras2torch_birnn.limits import MAX_OPERATION_RANK, MAX_OPERATION_VALUES
from keras2torch_birnn.schema.options import ACTIVATION_OPTIONS
from keras2torch_birnn.schema.row import Config, ShapeError
from keras2torch_birnn.schema.windows import window_length
from keras2torch_birnn.spec import Shape, Structure

Output = Callable[[Config, Structure], Structure]


def checked(output: Output) -> Output:
    """Wrap an output rule: refuse results that are too large before they are computed."""

    def shape(config: Config, inputs: Structure) -> Structure:
        out = output(config, inputs)
        for one in out if isinstance(out, tuple) and is_list(out) else (out,):
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


def first(inputs: Structure) -> Shape | None:
    """Return the shape of the first argument."""
    shape: Shape | None = inputs[0] if is_list(inputs) else inputs
    return shape


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


def broadcast(shapes: Sequence[Shape | None]) -> Shape | None:
    """Broadcast as NumPy does; a free size and a fixed one give the fixed one."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    rank = max(map(len, known))
    out: list[int | None] = []
    for sizes in zip(*((1,) * (rank - len(shape)) + shape for shape in known), strict=True):
        fixed = {size for size in sizes if size not in (1, None)}
        if len(fixed) > 1:
            shown = ", ".join(str(list(shape)) for shape in known)
            raise ShapeError(f"shapes {shown} do not fit each other")
        out.append(fixed.pop() if fixed else None if None in sizes else 1)
    return tuple(out)


def elementwise(config: Config, inputs: Structure) -> Shape | None:
    """Broadcast the arguments of an elementwise operation."""
    return broadcast(inputs)


def chosen(config: Config, inputs: Structure) -> Shape | None:
    """Broadcast a condition and two tensors; TensorFlow's old Select does not broadcast."""
    shape = broadcast(inputs)
    if not config["broadcasts"] and any(one != shape for one in inputs):
        raise ShapeError("a choice by rows is not supported")
    return shape


def each(config: Config, inputs: Structure) -> Structure:
    """Return every argument's shape."""
    return inputs


def same(config: Config, inputs: Structure) -> Shape | None:
    """Return the first argument's shape."""
    return first(inputs)


def activated(config: Config, inputs: Structure) -> Shape | None:
    """Return the first argument's shape; glu halves an axis."""
    shape, function = first(inputs), config["function"]
    name, options = (function, {}) if isinstance(function, str) else (function["name"], function)
    if shape is None or "axis" not in ACTIVATION_OPTIONS.get(name, {}):
        return shape
    axis = place(options.get("axis", -1), len(shape))
    size = shape[axis]
    if name != "glu" or size is None:
        return shape
    if size % 2:
        raise ShapeError(f"glu of an axis of size {size}")
    return (*shape[:axis], size // 2, *shape[axis + 1 :])


def along_axis(config: Config, inputs: Structure) -> Shape | None:
    """Return the first argument's shape; refuse an axis that it does not have."""
    shape = first(inputs)
    if shape is not None and config["axis"] is not None:
        axis = config["axis"]
        places(axis if isinstance(axis, tuple) else (axis,), len(shape))
    return shape


def reduced(config: Config, inputs: Structure) -> Shape | None:
    """Remove the reduced axes, or set them to 1."""
    shape = first(inputs)
    if shape is None:
        return None
    axis = config["axis"]
    gone = places((axis,) if isinstance(axis, int) else axis, len(shape))
    if config.get("keepdims"):
        return tuple(1 if i in gone else size for i, size in enumerate(shape))
    return tuple(size for i, size in enumerate(shape) if i not in gone)


def reduced_twice(config: Config, inputs: Structure) -> Structure:
    """Return the shapes of mean and variance."""
    return reduced(config, inputs), reduced(config, inputs)


def ranked(config: Config, inputs: Structure) -> Structure:
    """Return the shapes of the k largest along the last axis and of their indices."""
    shape = first(inputs)
    if shape is None:
        return None, None
    if not shape or (None not in (shape[-1], config["k"]) and shape[-1] < config["k"]):
        raise ShapeError(f"the {config['k']} largest of {list(shape)}")
    return ((*shape[:-1], config["k"]),) * 2


def normalized(config: Config, inputs: Structure) -> Shape | None:
    """Return the first argument's shape; refuse axes that are not its last ones."""
    shape = first(inputs)
    if shape is None:
        return None
    if places(config["axis"], len(shape)) != tuple(range(len(shape)))[-len(config["axis"]) :]:
        raise ShapeError(f"axes {list(config['axis'])} that are not the last ones")
    for other in inputs[1:]:
        if broadcast([shape, other]) not in (shape, None):
            raise ShapeError(f"{list(other)} does not fit {list(shape)}")
    return shape


def attended(config: Config, inputs: Structure) -> Shape | None:
    """Attend: (B, T, N, H), (B, S, K, H), (B, S, K, V), mask (B, N, T, S) -> (B, T, N, V)."""
    query, key, value, *mask = inputs
    if query is None or key is None or value is None:
        return None
    if not len(query) == len(key) == len(value) == 4:
        raise ShapeError("query, key and value of four dimensions are expected")
    heads, less = query[2], key[2]
    if value[2] != less or heads is None or less is None or heads % less or 1 == less < heads:
        raise ShapeError(f"{heads} heads of the query and {less}, {value[2]} of key and value")
    for a, b in ((query[3], key[3]), (key[1], value[1])):
        if None not in (a, b) and a != b:
            raise ShapeError(f"sizes {a} and {b} do not fit each other")
    if mask and broadcast([mask[0], (query[0], heads, query[1], key[1])]) is None:
        return None
    return (*query[:3], value[3])


def pooled(config: Config, inputs: Structure) -> Shape | None:
    """Pool (B, steps, C): fewer steps on every axis of a window."""
    shape = first(inputs)
    if shape is None:
        return None
    rank = len(shape) - 2
    if not 1 <= rank <= 3:
        raise ShapeError(f"windows over a tensor of {len(shape)} dimensions")
    size = windows(config["pool_size"], rank)
    strides = windows(config["strides"] or config["pool_size"], rank)
    bounded([*size, shape[-1] or 1])  # padding may be as long as a window
    steps = [
        window_length(length, extent, stride, config["padding"])
        for length, extent, stride in zip(shape[1:-1], size, strides, strict=True)
    ]
    return (shape[0], *steps, shape[-1])


def windows(inputs: Sequence[int], rank: int) -> tuple[int, ...]:
    """Return a size for every axis; a single size is for all."""
    out = tuple(inputs) * rank if len(inputs) == 1 else tuple(inputs)
    if len(out) != rank:
        raise ShapeError(f"{len(out)} sizes of windows for {rank} axes")
    return out


def matmul(config: Config, inputs: Structure) -> Shape | None:
    """Multiply (..., m, k) by (..., k, n)."""
    a, b = inputs
    if a is None or b is None:
        return None
    if not a or not b:
        raise ShapeError("a single number in a matrix product")
    if config["transpose_a"] and len(a) > 1:
        a = (*a[:-2], a[-1], a[-2])
    if config["transpose_b"] and len(b) > 1:
        b = (*b[:-2], b[-1], b[-2])
    met = b[-2] if len(b) > 1 else b[-1]
    if None not in (a[-1], met) and a[-1] != met:
        raise ShapeError(f"matrices {list(a)} and {list(b)} do not fit each other")
    batch = broadcast([a[:-2], b[:-2]]) or ()
    return (*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


def dot(config: Config, inputs: Structure) -> Shape | None:
    """Multiply as ``numpy.dot``: the last axis of x with the last but one of y."""
    a, b = inputs
    if a is None or b is None:
        return None
    if not a or not b:
        return broadcast(inputs)
    met = b[-2] if len(b) > 1 else b[-1]
    if None not in (a[-1], met) and a[-1] != met:
        raise ShapeError(f"{list(a)} and {list(b)} do not fit each other")
    return (*a[:-1], *b[:-2], *(b[-1:] if len(b) > 1 else ()))


def tensordot(config: Config, inputs: Structure) -> Shape | None:
    """Contract the axes of x with those of y."""
    a, b = inputs
    if a is None or b is None:
        return None
    left = [place(axis, len(a)) for axis in config["axes"][0]]
    right = [place(axis, len(b)) for axis in config["axes"][1]]
    for i, j in zip(left, right, strict=True):
        if None not in (a[i], b[j]) and a[i] != b[j]:
            raise ShapeError(f"axis {i} of {list(a)} and axis {j} of {list(b)} differ")
    rest = [size for i, size in enumerate(a) if i not in left]
    return (*rest, *(size for j, size in enumerate(b) if j not in right))


def einsum(config: Config, inputs: Structure) -> Shape | None:
    """Compute the shape of an einsum: letters are axes, an ellipsis broadcast axes."""
    left, output = config["subscripts"].split("->")
    terms = left.split(",")
    if len(terms) != len(inputs):
        raise ShapeError(f"{len(inputs)} tensors for the {len(terms)} terms of {left!r}")
    sizes: dict[str, int | None] = {}
    rests: list[Shape] = []
    for term, shape in zip(terms, inputs, strict=True):
        if shape is None:
            return None
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
    spread = broadcast(rests) or ()
    out: list[int | None] = []
    for part in re.findall(r"\.\.\.|.", output):
        out += spread if part == "..." else [sizes[part]]
    return tuple(out)
