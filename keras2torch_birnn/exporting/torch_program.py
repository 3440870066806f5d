"""From a converted model to a program of ``torch.export``, with the file's open sizes left open.

The first step of the targets that begin with such a program. Before, sizes are fixed that a Keras
file leaves open although its model takes only one value: ``tf.reshape(x, (32, -1, 5))`` takes a
batch of 32, whatever the file says of its inputs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from itertools import chain, combinations
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from keras2torch_birnn.errors import K2TError, printable
from keras2torch_birnn.layers.running import move_inputs, run
from keras2torch_birnn.limits import MAX_OPEN_SIZES
from keras2torch_birnn.reference.input_sizes import declare_shapes, fill_shapes
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.rnn.torch_private import find
from keras2torch_birnn.spec import Array, ModelSpec, Shape

Inputs: TypeAlias = tuple[Tensor, ...]
Axes: TypeAlias = tuple[tuple[int, ...], ...]  # of each input
# Declared dtypes that are not floats -> torch's. Those of which torch has few operators are int32.
_WHOLE: Mapping[str, torch.dtype] = {
    **{name: getattr(torch, name) for name in ("bool", "uint8", "int8", "int16", "int32", "int64")},
    **dict.fromkeys(("uint16", "uint32"), torch.int32),
    "uint64": torch.int64,
}
_LOGGERS = ("torch.onnx", "torch.export", "torch._export", "onnxscript")
_CONFIG: Any = find("shape_config")
_OPTION = "backed_size_oblivious"


def draw_example(model: nn.Module, spec: ModelSpec, steps: int, seed: int) -> Inputs:
    """Draw inputs for a model where it is, with so many steps where their number is open."""
    return as_declared(model, spec, draw_inputs(spec, steps=steps, seed=seed))


def as_declared(model: nn.Module, spec: ModelSpec, arrays: Sequence[Array]) -> Inputs:
    """Return arrays as inputs of a model where it is, in the dtypes that the file declares.

    A program that is recorded with them takes these dtypes.
    """
    found = []
    for array, layer in zip(arrays, spec.input_layers(), strict=True):
        x, whole = torch.from_numpy(array), _WHOLE.get(str(layer.config["dtype"]))
        if whole is not None:
            x = x.to(whole)
        elif not x.is_floating_point():
            x = x.float()
        found.append(x)
    return move_inputs(model, tuple(found))


def input_shapes(spec: ModelSpec, inputs: Inputs) -> tuple[Shape, ...]:
    """Return the declared shape of every input, None where a size is open."""
    declared = (layer.config["shape"] for layer in spec.input_layers())
    return tuple(
        (None,) * x.dim() if shape is None else tuple(shape)
        for shape, x in zip(declared, inputs, strict=True)
    )


def open_axes(spec: ModelSpec, inputs: Inputs) -> Axes:
    """Return the axes of each input whose size is open."""
    return tuple(
        tuple(axis for axis, size in enumerate(shape) if size is None)
        for shape in input_shapes(spec, inputs)
    )


def record_program(
    model: nn.Module, inputs: Inputs, axes: Axes, *, like_all_sizes: bool = False
) -> ExportedProgram:
    """Record a model on example inputs; ``axes`` stay open. Errors are torch's own.

    like_all_sizes: let torch treat a size of 1 like others. It otherwise asks that none becomes 1:
    five steps, for one, are a single one behind a window of five. Few models need the distinction.
    """
    free = tuple(dict.fromkeys(one, torch.export.Dim.DYNAMIC) for one in axes)
    ones: Any = nullcontext()
    if like_all_sizes and hasattr(_CONFIG, _OPTION):
        ones = _CONFIG.patch(_OPTION, True)
    with torch.no_grad(), ones, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about nn.LSTM
        return torch.export.export(model, inputs, dynamic_shapes=free, strict=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's warnings and logs of exports: its errors say what matters."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


# ---- sizes that only the model fixes ----

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
