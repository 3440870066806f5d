"""Weights in the kernel's order, kept as long as their parameters hold the same values.

G gates, H units, F features, D directions.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from keras2torch_birnn.rnn.native.library import GATES, Array, Shape, Weights, library

# One direction's parameters: weight_ih (G*H, F), weight_hh (G*H, H), bias_ih, bias_hh (G*H,).
Parameters: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Packed:
    """The weights of all directions as the kernel takes them.

    ``at``: the address of their ``weights``; ``unchecked``: of the same without what the kernel
    compares with the parameters' values. ``alive``: what those point to.
    """

    weights: Weights
    at: int
    unchecked: int
    alive: tuple[Any, ...]


@dataclass(frozen=True)
class _Kept:
    """Packed weights, the shapes of the parameters, and the memory in which those lie.

    They go with the first ``storages`` that goes, or moves away from the address it had (``at``).
    """

    packed: Packed
    shapes: tuple[torch.Size, ...]
    storages: tuple[weakref.ref[torch.UntypedStorage], ...]
    at: tuple[int, ...]

    def has_moved(self) -> bool:
        """Tell whether a storage is not where it was: resized, for one."""
        now = [storage() for storage in self.storages]
        return any(s is None or s.data_ptr() != at for s, at in zip(now, self.at, strict=True))


_SHAPE = attrgetter("shape")

# By kind of cell, instruction set and the parameters' addresses: all that lies there is compared by
# the kernel. Not by the parameters: torch cannot swap one with a weak reference.
_kept: dict[tuple[int, ...], _Kept] = {}


def packed_before(
    kind: int, parameters: Sequence[Tensor | None], isa: int, *, stale: bool = False
) -> Packed:
    """The weights in the kernel's order, from last time if they lie where they did.

    parameters: four for each direction. The kernel looks at their values, all of them, whenever it
    runs: torch counts the changes of a tensor, but not those written through ``parameter.data``,
    and a stale weight would be a wrong number. ``stale``: it found that they have changed.
    """
    there = [p for p in parameters if p is not None]
    if not all(map(Tensor.is_contiguous, there)):
        return freshly_packed(kind, parameters, isa)  # of copies
    shapes = tuple(map(_SHAPE, there))
    key: tuple[int, ...] = (kind, isa, *map(Tensor.data_ptr, there))
    if len(there) < len(parameters):
        key += tuple(p is None for p in parameters)
    found = None if stale else _kept.get(key)
    if found is not None and found.shapes == shapes:
        return found.packed
    arrays = []
    for first in range(0, len(parameters), 4):
        given = parameters[first : first + 4]
        at = [Array() if p is None else Array(p.data_ptr(), p.numel()) for p in given]
        arrays.append((Array * 4)(*at))
    # Before they are packed: what another thread changes meanwhile is noticed by the next run.
    prints = [library().k2t_fingerprint(isa, array) for array in arrays]
    packed = freshly_packed(kind, parameters, isa, arrays, prints)
    storages = [p.untyped_storage() for p in there]
    watches = tuple(weakref.ref(s, lambda _: _kept.pop(key, None)) for s in storages)
    for other in list(_kept):  # any of which may go meanwhile, with memory that is collected
        found = _kept.get(other)
        if found is not None and found.has_moved():
            _kept.pop(other, None)
    _kept[key] = _Kept(packed, shapes, watches, tuple(s.data_ptr() for s in storages))
    return packed


def freshly_packed(
    kind: int,
    parameters: Sequence[Tensor | None],
    isa: int,
    arrays: Sequence[Any] = (),
    prints: Sequence[int] = (),
) -> Packed:
    """The weights in the kernel's order.

    arrays, prints: what the kernel compares with the parameters' values as it runs, for each
    direction; none if it need not.

    Raises:
        ValueError: one has another shape than its cell needs.
    """
    features, units = sizes(parameters)
    rows, directions = GATES[kind] * units, len(parameters) // 4
    wanted = ((rows, features), (rows, units), (rows,), (rows,)) * directions
    for p, right in zip(parameters, wanted, strict=True):
        if p is not None and p.shape != right:
            raise ValueError(f"a weight {list(right)} is expected, found {list(p.shape)}")
    shape = Shape(kind, features, units)
    size = library().k2t_packed_size(isa, ctypes.byref(shape))
    data = []
    for first in range(0, len(parameters), 4):
        data.append(room(size))
        direction = parameters[first : first + 4]
        sources = [None if p is None else p.detach().contiguous() for p in direction]
        pointers = [None if s is None else s.data_ptr() for s in sources]
        library().k2t_pack(isa, ctypes.byref(shape), *pointers, aligned(data[-1]))
    packed = (shape, directions, tuple(map(aligned, data)))
    weights = Weights(*packed, tuple(map(ctypes.addressof, arrays)), tuple(prints))
    unchecked = Weights(*packed)
    return Packed(
        weights,
        ctypes.addressof(weights),
        ctypes.addressof(unchecked),
        (unchecked, *data, *arrays),
    )


def sizes(parameters: Sequence[Tensor | None]) -> tuple[int, int]:
    """F and H, as the first direction's weights have them.

    Raises:
        ValueError: there are no such weights.
    """
    ih, hh = parameters[:2]
    if ih is None or hh is None or ih.dim() != 2 or hh.dim() != 2:
        raise ValueError("weight_ih and weight_hh of two dimensions are expected")
    return ih.shape[1], hh.shape[1]


_ALIGNED = 16  # floats in a cache line


def floats(*shape: int) -> Tensor:
    """Memory for float32 on the CPU, whatever torch's default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def room(count: int) -> Tensor:
    """Memory for so many floats from an ``aligned`` address on."""
    return floats(count + _ALIGNED)


def aligned(data: Tensor) -> int:
    """The first address in data that starts a cache line."""
    line = _ALIGNED * 4
    return (data.data_ptr() + line - 1) // line * line
