"""Sizes for the open axes of a model's inputs, found by shape inference: not every length fits.

A U-Net joins what it halved three times with what it did not: only multiples of 8 fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.limits import MAX_TRIED_LENGTH, MAX_TRIED_SHAPES
from keras2torch_birnn.schema.shape_inference import (
    declare_inputs,
    expected_weights,
    infer_model,
)
from keras2torch_birnn.spec import ModelSpec, Shape

# Lengths one after the other that are tried: each divisor up to it divides one of them. Beyond it
# come those that strides and poolings make.
_CONSECUTIVE = 64
_FACTORS = (2, 3, 5)
# Parts into which a length is divided at least, unless fewer steps are asked for: over one step a
# layer that goes backward does what one does that goes forward.
_PARTS = 3

# A shape for each input; None where it is not known.
Shapes = Sequence[Shape | None]


def declare_shapes(model: ModelSpec, shapes: Shapes) -> ModelSpec:
    """Return the model with other shapes of its inputs; None keeps one."""
    return replace(model, root=replace(model.root, graph=declare_inputs(model.graph, shapes)))


def shapes_agree(model: ModelSpec, shapes: Shapes) -> bool:
    """Tell whether no layer and no weight contradicts these shapes of the inputs."""
    problems: list[K2TError] = []
    root = infer_model(declare_shapes(model, shapes).root, problems)
    return not problems and all(
        wanted is None or have == wanted
        for layer in root.walk()
        for name, shape in expected_weights(layer).items()
        if name in layer.weights
        for have, wanted in zip(layer.weights[name].shape, shape, strict=False)
    )


def fill_shapes(model: ModelSpec, shapes: Shapes, size: int) -> list[Shape | None]:
    """Fill the open axes behind the batch with ``size``, or with the next sizes that fit.

    Where nothing fits, ``size`` is everywhere: computing the model tells the reason.
    """
    filled = [fill_shape(shape, size) for shape in shapes]
    if not open_places(shapes) or shapes_agree(model, filled):
        return filled
    search = _Search(model, size)
    return next(search.fill(list(shapes), open_places(shapes), ()), filled)


def fill_shape(shape: Shape | None, size: int) -> Shape | None:
    """Put ``size`` at every open axis of a shape behind the batch."""
    return shape and (*shape[:1], *(size if one is None else one for one in shape[1:]))


def open_places(shapes: Shapes) -> list[tuple[int, int]]:
    """Return input and axis of every open size behind the batch."""
    return [
        (place, axis)
        for place, shape in enumerate(shapes)
        for axis, size in enumerate(shape or ())
        if axis and size is None
    ]


def _rising(least: int) -> Iterator[int]:
    """Yield lengths from ``least`` on: each of the next ones, then products of small factors."""
    yield from range(least, least + _CONSECUTIVE + 1)
    products = {1}
    for factor in _FACTORS:
        for product in sorted(products):
            while (product := product * factor) <= MAX_TRIED_LENGTH:
                products.add(product)
    yield from sorted(size for size in products if size > least + _CONSECUTIVE)


@dataclass
class _Search:
    """A search for sizes, one axis after the other; it ends after so many shapes."""

    model: ModelSpec
    size: int
    left: int = field(default=MAX_TRIED_SHAPES)

    def fill(
        self, shapes: list[Shape | None], places: list[tuple[int, int]], taken: tuple[int, ...]
    ) -> Iterator[list[Shape | None]]:
        """Yield the shapes with a size at each place; ``taken``: those of the places before."""
        if not places:
            yield shapes
            return
        first, *others = places
        tried = dict.fromkeys((*taken, *_rising(self.size), *range(self.size - 1, 0, -1)))
        for size in self.sizes(shapes, first, tried):
            longer = self._of_enough_parts(shapes, first, size) if size not in taken else size
            for one in dict.fromkeys((longer, size)):
                yield from self.fill(_at(shapes, first, one), others, (*taken, one))

    def sizes(
        self, shapes: list[Shape | None], place: tuple[int, int], tried: Iterable[int]
    ) -> Iterator[int]:
        """Yield the sizes that one axis takes, of those tried."""
        return (size for size in tried if self._agrees(_at(shapes, place, size)))

    def _of_enough_parts(
        self, shapes: list[Shape | None], place: tuple[int, int], size: int
    ) -> int:
        """Return a larger size with enough parts, for axes where only multiples fit."""
        period = next(self.sizes(shapes, place, _rising(size + 1)), size) - size
        missing = max(0, min(_PARTS, self.size) - size // period) if period > 1 else 0
        larger = size + missing * period
        return larger if self._agrees(_at(shapes, place, larger)) else size

    def _agrees(self, shapes: list[Shape | None]) -> bool:
        self.left -= 1
        return self.left >= 0 and shapes_agree(self.model, shapes)


def _at(shapes: list[Shape | None], place: tuple[int, int], size: int) -> list[Shape | None]:
    """Return the shapes with a size at one place."""
    index, axis = place
    shape = shapes[index] or ()
    changed = (*shape[:axis], size, *shape[axis + 1 :])
    return [*shapes[:index], changed, *shapes[index + 1 :]]
