"""Fix sizes that a Keras file leaves open although its model takes only one value.

``tf.reshape(x, (32, -1, 5))`` takes a batch of 32, whatever the file says of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from itertools import chain, combinations
from typing import TypeAlias

import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import K2TError, printable
from keras2torch_birnn.exporting.torch_program import input_shapes
from keras2torch_birnn.limits import MAX_OPEN_SIZES
from keras2torch_birnn.reference.input_sizes import declare_shapes, fill_shapes
from keras2torch_birnn.running import run
from keras2torch_birnn.spec import ModelSpec

# Axes of one size: places of inputs, and the axis of each.
_Size: TypeAlias = tuple[tuple[int, int], ...]
# Other sizes for one that the model takes, of both parities.
_OTHERS: tuple[Callable[[int], int], ...] = (lambda n: n + 1, lambda n: n + 2)


def settle_sizes(
    model: nn.Module, spec: ModelSpec, example: Sequence[Tensor], file: ModelSpec | None = None
) -> tuple[ModelSpec, tuple[str, ...]]:
    """Fix open sizes for which the model takes only the example's value; return notes on them.

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
            return _changes(model, example, some, (*_OTHERS, lambda n: 2 * n)) or takes(
                model, _resized(example, _next_sizes(spec, example, some))
            )
        steps = tuple(size for size in some if size is not batch)
        return all(_changes(model, example, these, _OTHERS) for these in (some, steps))

    counts = range(len(sizes), 0, -1)  # all sizes, then fewer and fewer of them
    subsets = chain.from_iterable(combinations(sizes, count) for count in counts)
    free = next(filter(are_free, subsets), ())
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


def _changes(
    model: nn.Module,
    example: Sequence[Tensor],
    sizes: Sequence[_Size],
    others: Sequence[Callable[[int], int]],
) -> bool:
    """Tell whether the model takes one of the other numbers for some sizes."""
    places = tuple(chain.from_iterable(sizes))
    return any(
        takes(model, _resized(example, {(i, a): other(example[i].shape[a]) for i, a in places}))
        for other in others
    )


def _resized(example: Sequence[Tensor], sizes: Mapping[tuple[int, int], int]) -> list[Tensor]:
    """Return the example with other sizes of some axes, its values one after the other again."""
    changed = list(example)
    for (i, axis), size in sizes.items():
        places = torch.arange(size, device=changed[i].device) % changed[i].shape[axis]
        changed[i] = changed[i].index_select(axis, places)
    return changed


def _next_sizes(
    spec: ModelSpec, example: Sequence[Tensor], sizes: Sequence[_Size]
) -> Mapping[tuple[int, int], int]:
    """Return larger sizes that the layers take of some axes together, such as 14 after 10."""
    places = tuple(chain.from_iterable(sizes))
    shapes = [
        tuple(None if (i, axis) in places else size for axis, size in enumerate(x.shape))
        for i, x in enumerate(example)
    ]
    least = 1 + max(example[i].shape[axis] for i, axis in places)
    filled = fill_shapes(spec, shapes, least)
    return {(i, a): (filled[i] or ())[a] or example[i].shape[a] + 1 for i, a in places}


def run_quietly(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Run a model; keep torch from printing where it failed."""
    with redirect_stderr(StringIO()):
        return run(model, tuple(inputs))


def takes(model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Tell whether a model takes inputs of such sizes."""
    try:
        run_quietly(model, inputs)
    except (K2TError, ArithmeticError, IndexError, RuntimeError, ValueError):
        return False
    return True
