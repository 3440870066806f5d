"""Sizes that a Keras file leaves open, and of which its model takes one alone.

``tf.reshape(x, (32, -1, 5))`` takes a batch of 32, whatever the file says of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO
from itertools import chain, combinations
from typing import TypeAlias

import torch
from torch import Tensor, nn

from keras2torch_birnn.conversion import run
from keras2torch_birnn.errors import K2TError, printable
from keras2torch_birnn.exporting.torch_program import input_shapes
from keras2torch_birnn.limits import MAX_OPEN_SIZES
from keras2torch_birnn.reference.sample_inputs import declare_shapes
from keras2torch_birnn.spec import ModelSpec

# Axes of one size: places of inputs, and the axis of each.
_Size: TypeAlias = tuple[tuple[int, int], ...]
# Other sizes for one that the model takes, of both parities.
_OTHERS: tuple[Callable[[int], int], ...] = (lambda n: n + 1, lambda n: n + 2)


def settle_sizes(
    model: nn.Module, spec: ModelSpec, example: Sequence[Tensor], file: ModelSpec | None = None
) -> tuple[ModelSpec, tuple[str, ...]]:
    """Declare open sizes of which a model takes that of the example alone; notes tell them.

    The model is run with other sizes: all, then fewer of them at a time, the most that can change.

    file: the model as its file declares it, where ``spec`` opens more. Of these sizes a model must
    take another than a multiple: ``Reshape((-1, 7, 5))`` takes 14 of 7 steps for two rows.
    """
    shapes = input_shapes(spec, tuple(example))
    opened = {
        (i, axis)
        for i, shape in enumerate(input_shapes(file or spec, tuple(example)))
        for axis, size in enumerate(shape)
        if size is not None
    }
    open_axes = [(i, a) for i, shape in enumerate(shapes) for a, n in enumerate(shape) if n is None]
    batch = tuple(place for place in open_axes if place[1] == 0)
    sizes = [*([batch] if batch else []), *((place,) for place in open_axes if place[1])]
    if len(sizes) > MAX_OPEN_SIZES:
        return spec, ()

    def are_free(some: tuple[_Size, ...]) -> bool:
        if opened.isdisjoint(chain(*some)):
            return _changes(model, example, some, (*_OTHERS, _double))
        steps = tuple(size for size in some if size is not batch)
        return all(_changes(model, example, these, _OTHERS) for these in (some, steps))

    free = next(filter(are_free, _subsets(sizes)), ())
    fixed = [size for size in sizes if size not in free]
    if not fixed or not takes(model, example):
        return spec, ()
    settled = [list(shape) for shape in shapes]
    for i, axis in chain.from_iterable(fixed):
        settled[i][axis] = example[i].shape[axis]
    names = [layer.name for layer in spec.input_layers()]
    notes = [
        f"{f'axis {axis} of input {printable(names[i])}' if axis else 'the batch'} is fixed at "
        f"{example[i].shape[axis]}{'' if (i, axis) in opened else ': the file leaves it open'}, "
        f"{'as in the file:' if (i, axis) in opened else 'but'} the model does not take "
        f"{example[i].shape[axis] + 1}"
        for (i, axis), *_ in fixed
    ]
    return declare_shapes(spec, [tuple(shape) for shape in settled]), tuple(notes)


def _subsets(sizes: Sequence[_Size]) -> Iterator[tuple[_Size, ...]]:
    """Yield all sizes, then fewer and fewer of them."""
    for count in range(len(sizes), 0, -1):
        yield from combinations(sizes, count)


def _changes(
    model: nn.Module,
    example: Sequence[Tensor],
    sizes: Sequence[_Size],
    others: Sequence[Callable[[int], int]],
) -> bool:
    """Tell whether the model takes one of the other numbers for some sizes."""
    for other in others:
        changed = list(example)
        for i, axis in chain.from_iterable(sizes):
            size = changed[i].shape[axis]
            places = torch.arange(other(size), device=changed[i].device) % size
            changed[i] = changed[i].index_select(axis, places)
        if takes(model, changed):
            return True
    return False


def _double(size: int) -> int:
    return 2 * size


def run_quietly(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Run a model without what torch prints on errors: where in the model it fails."""
    with redirect_stderr(StringIO()):
        return run(model, tuple(inputs))


def takes(model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Tell whether a model takes inputs of such sizes."""
    try:
        run_quietly(model, inputs)
    except (K2TError, ArithmeticError, IndexError, RuntimeError, ValueError):
        return False
    return True
