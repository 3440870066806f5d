"""Equations of EinsumDense: a product of the input and a kernel, whose axes are letters.

Source: ``EinsumDense`` of tf.keras 2.4 to 2.15 and of Keras 3.0 to 3.15, which agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from keras2torch_birnn.schema.options import BadOptionError, size
from keras2torch_birnn.schema.row import Config, ShapeError, WeightShapes
from keras2torch_birnn.spec import Shape

# "abc,cd->abd", "...c,cd->...d", "abc...,cd->abd..."
_EQUATION = re.compile(
    r"(?P<left>\.\.\.)?(?P<input>[a-zA-Z]+)(?P<right>\.\.\.)?,(?P<kernel>[a-zA-Z]+)"
    r"->(?P<before>\.\.\.)?(?P<output>[a-zA-Z]+)(?P<after>\.\.\.)?"
)


@dataclass(frozen=True)
class Letters:
    """A parsed equation. ``dots``: "left" or "right" if an ellipsis is on that side."""

    input: str
    kernel: str
    output: str
    dots: str


def letters(equation: Any) -> Letters:
    """Parse an equation.

    Raises:
        BadOptionError: Keras has no such equation.
    """
    found = _EQUATION.fullmatch(equation) if isinstance(equation, str) else None
    if found is None:
        raise BadOptionError("an equation such as 'abc,cd->abd' or '...c,cd->...d' is expected")
    parts = Letters(
        found["input"],
        found["kernel"],
        found["output"],
        "left" if found["left"] else "right" if found["right"] else "",
    )
    sides = bool(found["left"]), bool(found["right"])
    if sides != (bool(found["before"]), bool(found["after"])) or all(sides):
        raise BadOptionError("three dots are expected on one side, of input and output alike")
    if parts.dots == "right" and len(parts.input) < 2:
        raise BadOptionError("two letters at least are expected before three dots")
    for word in (parts.input, parts.kernel, parts.output):
        if len(set(word)) < len(word):
            raise BadOptionError("no letter is expected twice in one place")
    given, kernel, out = set(parts.input), set(parts.kernel), set(parts.output)
    if kernel - given - out or out - given - kernel:
        raise BadOptionError("letters of kernel and output are expected elsewhere, too")
    return parts


def equation(value: Any) -> str:
    """Check the option ``equation``."""
    letters(value)
    return str(value)


def output_shape(value: Any) -> tuple[int | None, ...]:
    """Parse the option ``output_shape``: a size, or several; None is a free one."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(None if part is None else size().parse(part) for part in values)


def bias_axes(value: Any) -> str | None:
    """Check the option ``bias_axes``."""
    if value is None or (isinstance(value, str) and re.fullmatch("[a-zA-Z]+", value)):
        return value
    raise BadOptionError("letters of the output are expected")


@dataclass(frozen=True)
class Sizes:
    """Sizes of an equation for one input: of every letter, and the output's shape.

    ``more``: sizes of the axes behind three dots.
    """

    parts: Letters
    of: Mapping[str, int | None]
    more: Shape

    def output(self) -> Shape:
        """Return the output's shape."""
        own = tuple(self.of[letter] for letter in self.parts.output)
        return (*self.more, *own) if self.parts.dots == "left" else (*own, *self.more)

    def bias(self, axes: str) -> Shape:
        """Return the bias' shape: from the first of its axes on, 1 where it has none."""
        first = min(self.parts.output.find(letter) for letter in axes)
        if first < 0:
            raise ShapeError(f"bias_axes {axes!r} are not among {self.parts.output!r}")
        own = (self.of[one] if one in axes else 1 for one in self.parts.output[first:])
        return (*own, *(1 for _ in (self.more if self.parts.dots == "right" else ())))


def sizes(config: Config, shape: Shape) -> Sizes:
    """Compute the sizes of all letters for an input of this shape."""
    parts, declared = letters(config["equation"]), config["output_shape"]
    count = len(shape) - len(parts.input)
    if count < 0 or (count and not parts.dots):
        raise ShapeError(f"equation {config['equation']!r} does not fit {list(shape)}")
    left = count if parts.dots == "left" else 0
    more = shape[:left] if left else shape[len(parts.input) :]
    given = shape[left : left + len(parts.input)]
    # As Keras declares it: the batch, the axes of the ellipsis, then output_shape.
    full = (*shape[: max(left, 1)], *declared) if left else (shape[0], *declared)
    own = full[left:]
    if len(own) != len(parts.output):
        raise ShapeError(
            f"output_shape {list(declared)} does not fit equation {config['equation']!r}"
        )
    if not left and parts.output[0] != parts.input[0]:
        raise ShapeError(f"equation {config['equation']!r} moves the samples")
    of: dict[str, int | None] = {}
    for letter, size_ in (*_pairs(parts.input, given), *_pairs(parts.output, own)):
        if None not in (of.get(letter), size_) and of[letter] != size_:
            raise ShapeError(f"axis {letter!r} has {of[letter]} and {size_} places")
        of[letter] = size_ if of.get(letter) is None else of[letter]
    return Sizes(parts, of, more)


def _pairs(word: str, shape: Shape) -> Iterator[tuple[str, int | None]]:
    return zip(word, shape, strict=True)


def weights(config: Config, shape: Shape | None) -> WeightShapes:
    """Compute the shapes of kernel and bias."""
    if shape is None:  # sizes are taken from the weights; an ellipsis counts as one axis
        parts = letters(config["equation"])
        shape = (None,) * (len(parts.input) + bool(parts.dots))
        config = {**config, "output_shape": (None,) * len(config["output_shape"])}
    found = sizes(config, shape)
    out: dict[str, Shape] = {"kernel": tuple(found.of[one] for one in found.parts.kernel)}
    if config["bias_axes"] is not None:
        out["bias"] = found.bias(config["bias_axes"])
    return out


def output(config: Config, shape: Shape | None) -> Shape | None:
    """Compute the shape of the output."""
    return None if shape is None else sizes(config, shape).output()
