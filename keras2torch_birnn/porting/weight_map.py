"""The table of ``k2t map``: each weight of the file, the torch tensor it becomes, and how.

``layers.origins`` finds where every element of a tensor came from. Here that is put into words:
the words are found by trying which rearrangement of the array gives the same elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
import numpy.typing as npt

from keras2torch_birnn.layers.origins import Copies, Fixed
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.porting.gates import (
    Order,
    gate_count,
    keras_letters,
    orders,
    torch_letters,
)
from keras2torch_birnn.readers.containers import opened
from keras2torch_birnn.readers.steps import PathLike
from keras2torch_birnn.readers.store import StoredArray
from keras2torch_birnn.readers.weights.load_weights import StoredLayer
from keras2torch_birnn.rnn.parameters import reorder
from keras2torch_birnn.spec import NO_CUT, Cut
from keras2torch_birnn.trainers.weight_places import Inverse, Located, locate

_UNUSUAL = "elements rearranged"


@dataclass(frozen=True)
class MapRow:
    """One weight, or a part of it, and the tensor that it becomes.

    ``keras``: layers and weight by name, "" for a tensor that comes from no weight; ``path``: where
    the array is in the file. ``done``: what is done to the array, in words. ``key``: its name in
    ``k2t.weights``.
    """

    keras: str
    path: str
    keras_shape: tuple[int, ...] | None
    torch: str
    torch_shape: tuple[int, ...]
    done: str
    key: str = ""


def map_weights(
    source: PathLike,
    *,
    config: PathLike | None = None,
    plugins: Iterable[PluginName] = (),
    cut: Cut = NO_CUT,
) -> tuple[MapRow, ...]:
    """Return the table of a model's weights, in the order of its layers.

    source: any file or folder that ``k2t.convert`` reads; ``config``,
    ``plugins``, ``cut``: as there. Shapes are those of the arrays as the file stores them.

    Raises:
        K2TError: as ``k2t.convert``.
    """
    load_plugins(plugins)
    with opened(source) as container:
        located = locate(container, config=config, cut=cut)
        keys = {at: name for name, at in container.weight_names().items()}
        return tuple(replace(row, key=keys.get(row.path, "")) for row in _rows(located))


def _rows(located: Located) -> Iterator[MapRow]:
    for (_, layer), inverse in located.inverses():
        inside = {one.path for one in layer.walk()}
        rows = [row for row in located.weights.rows if row.layer.path in inside]
        yield from _layer_rows(inverse, rows)


def _layer_rows(inverse: Inverse, rows: list[StoredLayer]) -> Iterator[MapRow]:
    """Yield the rows of one layer: its weights, then the tensors that come from none."""
    for row in rows:
        for name, array in row.arrays.items():
            keras = "/".join((*row.layer.path, name))
            known = list(_tensors_of(inverse, array, row.layer.class_name))
            for tensor, done in known or [(one, "computed from it") for one in inverse.computed]:
                shape = inverse.shapes[tensor]
                yield MapRow(keras, array.path, array.shape, tensor, shape, done or "as it is")
    for fixed in inverse.fixed:
        if fixed.tensor not in inverse.computed:
            shape = inverse.shapes[fixed.tensor]
            yield MapRow("", "", None, fixed.tensor, shape, _describe_fixed(fixed, shape))


def _tensors_of(inverse: Inverse, array: StoredArray, class_name: str) -> Iterator[tuple[str, str]]:
    """Yield the tensors that take elements of an array, and what is done to them."""
    for copies in inverse.copies.get(array.path, ()):
        done = describe_copies(array.shape, inverse.shapes[copies.tensor], copies, class_name)
        if array.path in inverse.summed:
            done = f"sum of the input and the recurrent bias{', ' * bool(done)}{done}"
        yield copies.tensor, done
    if array.path in inverse.whole:
        yield inverse.whole[array.path], ""


def _describe_fixed(fixed: Fixed, shape: tuple[int, ...]) -> str:
    some = "" if len(fixed.elements) == math.prod(shape) else f"{len(fixed.elements)} values: "
    if not fixed.values.any():
        return f"{some}zero"
    return f"{some}fixed, whatever the weights are"


# ---- words for a rearrangement -------------------------------------------------------------------


def describe_copies(
    shape: tuple[int, ...], tensor_shape: tuple[int, ...], copies: Copies, class_name: str
) -> str:
    """Describe how elements of an array become those of a tensor; "" if nothing is done.

    class_name: of the layer that the array belongs to, for its gates.
    """
    source = _part(shape, copies.positions)
    target = _part(tensor_shape, copies.elements)
    # By the order of the elements in the tensor, which is that of ``copies.elements``.
    wanted = copies.positions
    words = [f"into {target.words}"] if target.words else []
    if source.values.size != len(wanted) or target.values.size != len(wanted):
        return ", ".join([_UNUSUAL, *words])
    if source.words:
        words.insert(0, source.words)
    whole = not source.words and not target.words
    fitting = [
        (whole and moved.transpose(axes).shape != target.values.shape, order, axes, moved)
        for order, axes in _rearrangements(source.values, class_name)
        for moved in [source.values if order is None else reorder(source.values, order, axis=-1)]
        if np.array_equal(moved.transpose(axes).reshape(-1), wanted)
    ]
    if fitting:  # that of the tensor's own shape: axes of size 1 fit in any place
        _, order, axes, moved = min(fitting, key=lambda one: one[0])
        return ", ".join(
            [*words, *_describe(order, axes, class_name, target.values, moved, whole=whole)]
        )
    flat = _describe_flat(source.values, wanted, class_name)
    return ", ".join([*words, flat])


@dataclass(frozen=True)
class _Part:
    """The smallest block of an array that holds some elements: their numbers, and where it is."""

    values: npt.NDArray[np.int64]
    words: str


def _part(shape: tuple[int, ...], elements: npt.NDArray[np.int64]) -> _Part:
    every = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    if len(elements) == every.size:
        return _Part(every, "")
    places = np.unravel_index(elements, shape)
    bounds = [(int(at.min()), int(at.max()) + 1) for at in places]
    values = every[tuple(slice(*one) for one in bounds)]
    cut = [
        _describe_range(axis, *bound, ndim=len(shape))
        for axis, (bound, size) in enumerate(zip(bounds, shape, strict=True))
        if bound != (0, size)
    ]
    return _Part(values, ", ".join(cut))


def _describe_range(axis: int, first: int, last: int, ndim: int) -> str:
    what = ("rows" if axis == 0 else "columns") if ndim <= 2 else f"axis {axis}"
    if last - first == 1:
        return f"{what.removesuffix('s')} {first}"
    return f"{what} {first} to {last - 1}"


def _rearrangements(
    array: npt.NDArray[np.int64], class_name: str
) -> Iterator[tuple[Order | None, tuple[int, ...]]]:
    """Yield orders of gates (None: as they are) with orders of axes, the simplest first."""
    gates = gate_count(class_name)
    ways: list[Order | None] = [None]
    if gates > 1 and array.ndim and array.shape[-1] % gates == 0:
        ways += [order for order in orders(gates) if order != tuple(range(gates))]
    own = tuple(range(array.ndim))
    axes = [own]
    if array.ndim <= 5:  # kernels of convolutions first
        axes = [own, *[(*own[:-3:-1], *own[:-2])] * (array.ndim > 2), *permutations(own)]
    yield from product(ways, axes)


def _describe(
    order: Order | None,
    axes: tuple[int, ...],
    class_name: str,
    target: npt.NDArray[np.int64],
    moved: npt.NDArray[np.int64],
    *,
    whole: bool,
) -> list[str]:
    words = []
    after = moved.transpose(axes).shape
    if axes == (1, 0) and (whole or 1 not in moved.shape):
        words.append("transposed")
    elif axes != tuple(range(len(axes))):
        words.append(f"axes in the order {', '.join(map(str, axes))}")
    if [n for n in after if n > 1] != [n for n in target.shape if n > 1]:
        words.append("reshaped")
    if order is not None:
        words.append(_describe_gates(order, class_name))
    return words


def _describe_gates(order: Order, class_name: str) -> str:
    return f"gates {keras_letters(class_name)} -> {torch_letters(class_name, order)}"


def _describe_flat(
    source: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64], class_name: str
) -> str:
    """Describe gates whose matrices lie in memory as torch has them, as in cuDNN's layout."""
    gates = gate_count(class_name)
    if gates > 1 and source.shape[-1] % gates == 0:
        blocks = [block.reshape(-1) for block in np.split(source, gates, axis=-1)]
        for order in orders(gates):
            if np.array_equal(np.concatenate([blocks[gate] for gate in order]), wanted):
                each = "each gate's columns reshaped to rows"
                return f"{each}, {_describe_gates(order, class_name)}"
    return _UNUSUAL
