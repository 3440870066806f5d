"""Layers that merge several tensors into one.

``masking`` says what mask comes out, and is the generation's: "all": a step counts where it counts
in every masked input; "any": where it counts in any, if every input has a mask (Multiply, Maximum
and Minimum then also pass over what does not count); "none": no mask comes out. Sources:
``merge.py`` of Keras 2.2.4 and 2.3.1, ``merging/base_merge.py`` of tf.keras 2.15 and Keras 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras2torch_birnn.schema.operations.movement import joined
from keras2torch_birnn.schema.options import (
    REQUIRED,
    BadOptionError,
    Option,
    choice,
    flag,
    number,
    size,
)
from keras2torch_birnn.schema.row import Config, Schema, ShapeError
from keras2torch_birnn.spec import Shape, Structure


def shapes_of(inputs: Structure, least: int = 1, most: int = 2**31) -> tuple[Shape | None, ...]:
    """Return the shapes of a list of tensors; refuse one tensor alone, and a wrong number."""
    if not isinstance(inputs, tuple) or any(isinstance(size, int) for size in inputs):
        raise ShapeError("a list of tensors is expected, found one")
    if not least <= len(inputs) <= most:
        wanted = str(least) if least == most else f"at least {least}"
        raise ShapeError(f"{wanted} tensors are expected, found {len(inputs)}")
    for shape in inputs:
        if shape is not None and any(isinstance(size, tuple) for size in shape):
            raise ShapeError("a list of tensors is expected, found lists in a list")
    return inputs


def _all_known(shapes: Sequence[Shape | None]) -> tuple[Shape, ...] | None:
    """Return the shapes, None if one of them is not known."""
    known = tuple(shape for shape in shapes if shape is not None)
    return known if len(known) == len(shapes) else None


def _together(a: int | None, b: int | None, shapes: tuple[Shape, ...]) -> int | None:
    """Return one size of an elementwise result; as in Keras a free size stays free."""
    if a is None or b is None:
        return None
    if 1 not in (a, b) and a != b:
        raise ShapeError(f"shapes {', '.join(str(list(s)) for s in shapes)} do not fit each other")
    return b if a == 1 else a


def _elementwise(inputs: Structure, least: int = 1, most: int = 2**31) -> Shape | None:
    """Broadcast the sizes after the batch from the right; lower ranks get axes of size 1."""
    known = _all_known(shapes_of(inputs, least, most))
    if known is None:
        return None
    if not all(known):  # a model whose list of outputs is empty has the shape ()
        raise ShapeError("an input without a batch cannot be merged")
    rank = max(len(shape) for shape in known)
    padded = [(shape[0], *[1] * (rank - len(shape)), *shape[1:]) for shape in known]
    out = padded[0]
    for shape in padded[1:]:
        sizes = (_together(a, b, known) for a, b in zip(out[1:], shape[1:], strict=True))
        out = (out[0] if out[0] is not None else shape[0], *sizes)
    return out


def positive_axis(axis: int, rank: int) -> int:
    """Count an axis from the start; refuse one that does not exist, and the batch."""
    found = axis + rank if axis < 0 else axis
    if not 1 <= found < rank:
        raise ShapeError(f"axis {axis} of a tensor of {rank} dimensions cannot be merged along")
    return found


def _concatenated(config: Config, inputs: Structure) -> Shape | None:
    known = _all_known(shapes_of(inputs))
    return None if known is None else joined(config, *known)


def _dot(config: Config, inputs: Structure) -> Shape | None:
    x, y = shapes_of(inputs, least=2, most=2)
    if x is None or y is None:
        return None
    if max(len(x), len(y)) > config["highest_rank"]:
        raise ShapeError(
            f"the Keras that wrote this multiplies tensors of more than {config['highest_rank']} "
            "dimensions in its own way, which is not supported"
        )
    a, b = (positive_axis(axis, len(s)) for axis, s in zip(config["axes"], (x, y), strict=True))
    if x[a] is not None and y[b] is not None and x[a] != y[b]:
        raise ShapeError(f"axis {a} of {list(x)} and axis {b} of {list(y)} differ")
    out = (*x[:a], *x[a + 1 :], *y[1:b], *y[b + 1 :])
    return out if len(out) > 1 else (*out, 1)


def _cosine(config: Config, inputs: Structure) -> Shape | None:
    """Return (B, 1, 1) for two vectors, where Keras 1 declares (B, 1)."""
    x, y = shapes_of(inputs, least=2, most=2)
    if x is None or y is None:
        return None
    if (len(x), len(y)) != (2, 2):
        raise ShapeError(
            "mode 'cos' of other than vectors divides matrices of products by each other, which "
            "is not supported"
        )
    for axis in config["axes"]:
        positive_axis(axis, 2)
    _together(x[1], y[1], (x, y))
    return (x[0], 1, 1)


def _pair(value: Any) -> tuple[int, int]:
    """Parse one axis of each tensor; a single number is both."""
    values = value if isinstance(value, list | tuple) else [value, value]
    if len(values) != 2:
        raise BadOptionError("an axis or two are expected")
    first, second = (size(least=-32).parse(v) for v in values)
    return first, second


_MASKING: Mapping[str, Option] = {"masking": choice(REQUIRED, "all", "any", "none")}
_ELEMENTWISE = Schema(
    semantics=_MASKING, output=lambda config, shape: _elementwise(shape), listed=True
)

LAYERS: Mapping[str, Schema] = {
    **dict.fromkeys(("Add", "Multiply", "Average", "Maximum", "Minimum"), _ELEMENTWISE),
    "Subtract": Schema(
        semantics=_MASKING,
        output=lambda config, shape: _elementwise(shape, least=2, most=2),
        listed=True,
    ),
    "Concatenate": Schema(
        {"axis": size(-1, least=-32)}, semantics=_MASKING, output=_concatenated, listed=True
    ),
    # a norm below smallest_norm counts as that; highest_rank: Keras before 2.3 multiplies more
    # than three dimensions by another rule
    "Dot": Schema(
        {
            "axes": Option(REQUIRED, _pair),
            "normalize": flag(False),
        },
        semantics={"smallest_norm": number(REQUIRED, 0.0), "highest_rank": size(REQUIRED)},
        output=_dot,
        listed=True,
    ),
    # of Keras 1; its other modes have classes of their own
    "Merge": Schema(
        {"mode": choice(REQUIRED, "cos"), "axes": Option(REQUIRED, _pair)},
        output=_cosine,
        listed=True,
        refused=("functions of the user's own", "mode cos of other than vectors"),
    ),
}
