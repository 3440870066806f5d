"""Where every element of a layer's torch tensors comes from.

It is not written down a second time. A builder gets running numbers in place of weights, so what
comes out of it says where every element came from. A second run with random numbers tells copies
from elements that were computed, such as the sum of two biases. A large weight whose memory a
tensor takes as it is, such as the table of an Embedding, is not numbered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from keras2torch_birnn.spec import Array

Key = TypeVar("Key", bound=Hashable)
Positions: TypeAlias = npt.NDArray[np.int64]
# Random numbers are integers of so many bits: sums of two are exact, and equal no third by chance.
_BITS = 51
_SEED = 0x6B3274
# Elements; the numbers of smaller weights take little memory.
_LARGE = 1 << 22


@dataclass(frozen=True, eq=False)
class Copies:
    """Elements of a tensor, and the elements of a weight that they are copies of."""

    tensor: str
    elements: Positions
    positions: Positions


@dataclass(frozen=True, eq=False)
class Fixed:
    """Elements of a tensor that are the same whatever the weights are, such as a second bias."""

    tensor: str
    elements: Positions
    values: Array


@dataclass(frozen=True)
class Origins(Generic[Key]):
    """Where the elements of a layer's tensors come from.

    ``copies``: weight -> the tensors that it is in. ``whole``: large weight -> the tensor that is
    the weight, element by element. ``computed``: tensor -> elements that are no copies.
    ``shapes``: those of all tensors.
    """

    copies: Mapping[Key, tuple[Copies, ...]]
    whole: Mapping[Key, str]
    fixed: tuple[Fixed, ...]
    computed: Mapping[str, Positions]
    shapes: Mapping[str, tuple[int, ...]]


def find_origins(
    build: Callable[[Mapping[Key, Any]], Mapping[str, Tensor]],
    weights: Mapping[Key, Any],
) -> Origins[Key]:
    """Find where the tensors that ``build`` makes of weights come from.

    weights: anything with a shape.
    """
    whole = _find_whole(build, weights)
    numbered = [key for key in weights if key not in whole]
    starts = np.array([0, *accumulate(math.prod(weights[key].shape) for key in numbered)], np.int64)

    def run(numbers: Array) -> Mapping[str, Tensor]:
        parts = (part.copy() for part in np.split(numbers, starts[1:-1]))
        values = {
            key: part.reshape(weights[key].shape)
            for key, part in zip(numbered, parts, strict=False)  # without weights one part is left
        }
        return build({**values, **{key: np.zeros(weights[key].shape) for key in whole}})

    drawn = np.random.default_rng(_SEED).integers(1, 1 << _BITS, starts[-1]).astype(np.float64)
    running, random = run(np.arange(1, len(drawn) + 1, dtype=np.float64)), run(drawn)
    after_zero = np.concatenate([[np.nan], drawn])  # nothing equals NaN
    copies: dict[Key, list[Copies]] = {}
    fixed: list[Fixed] = []
    computed: dict[str, Positions] = {}
    for name, tensor in running.items():
        if name in whole.values():
            continue
        first, second = _values(tensor), _values(random[name])
        numbers = _whole_numbers(first, len(drawn))
        copied = after_zero[numbers] == second
        elements = np.flatnonzero(copied)
        if len(elements) < len(copied):
            numbers = numbers[elements]
            same = ~copied & ((first == second) | (np.isnan(first) & np.isnan(second)))
            if (same_at := np.flatnonzero(same)).size:
                fixed.append(Fixed(name, same_at, first[same_at]))
            if (others := np.flatnonzero(~copied & ~same)).size:
                computed[name] = others
        for at in _owners(numbers, starts):
            positions = numbers - (starts[at] + 1)
            inside = (positions >= 0) & (positions < starts[at + 1] - starts[at])
            if inside.any():
                found = Copies(name, elements[inside], positions[inside])
                copies.setdefault(numbered[at], []).append(found)
    return Origins(
        {key: tuple(parts) for key, parts in copies.items()},
        whole,
        tuple(fixed),
        computed,
        {name: tuple(tensor.shape) for name, tensor in running.items()},
    )


def _find_whole(
    build: Callable[[Mapping[Key, Any]], Mapping[str, Tensor]], weights: Mapping[Key, Any]
) -> dict[Key, str]:
    """Find the large weights that are one tensor each, which shares their memory."""
    large = [key for key, weight in weights.items() if math.prod(weight.shape) >= _LARGE]
    if not large:
        return {}
    blank = {key: np.zeros(weight.shape) for key, weight in weights.items()}  # not touched
    places = {
        (tensor.data_ptr(), tuple(tensor.shape)): name
        for name, tensor in build(blank).items()
        if tensor.is_contiguous()
    }
    found = {key: places.get((blank[key].ctypes.data, blank[key].shape)) for key in large}
    return {key: name for key, name in found.items() if name is not None}


def _owners(numbers: Positions, starts: Positions) -> range:
    """Return the range of the weights whose elements have numbers between these."""
    if not len(numbers):
        return range(0)
    first, last = np.searchsorted(starts, (numbers.min() - 1, numbers.max() - 1), side="right")
    return range(first - 1, last)


def _whole_numbers(values: Array, most: int) -> Positions:
    """Return the values that are whole numbers from 1 to ``most``, and 0 for all others."""
    known = (values >= 1) & (values <= most) & (values == np.rint(values))
    return np.where(known, values, 0).astype(np.int64)


def _values(tensor: Tensor) -> Array:
    """Return all values of a tensor, flat."""
    return tensor.detach().to(torch.float64).reshape(-1).numpy()
