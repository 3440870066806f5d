"""Weights in the kernel's order, kept as long as their parameters hold the same values.

G gates, H units, F features, D directions.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from keras2torch_birnn.rnn.native.library import GATES, Array, Shape, library

# One direction's parameters: weight_ih (G*H, F), weight_hh (G*H, H), bias_ih, bias_hh (G*H,).
Parameters: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Packed:
    """Packed weights of all directions. ``addresses``: where each lies, for the kernel.

    ``sources``, ``prints``: what the kernel compares with the parameters' values as it runs; empty
    if it need not. ``arrays`` is what the sources point to.
    """

    data: tuple[Tensor, ...]
    addresses: tuple[int, ...]
    arrays: tuple[Any, ...] = ()
    sources: tuple[int, ...] = ()
    prints: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Kept:
    """Packed weights and the parameters they belong to.

    ``ids`` of the parameters are theirs alone as long as this is kept, for it goes with the first
    of them (``watches``).
    """

    packed: Packed
    ids: tuple[int, ...]
    watches: tuple[weakref.ref[Tensor], ...]
    pointers: tuple[int, ...]
    shapes: list[torch.Size]


_kept: dict[tuple[int, int], _Kept] = {}


def packed_before(
    shape: Shape, parameters: Sequence[Tensor | None], isa: int, *, stale: bool = False
) -> Packed:
    """The weights in the kernel's order, from last time if they lie where they did.

    parameters: four for each direction. The kernel looks at their values, all of them, whenever it
    runs: torch counts the changes of a tensor, but not those written through ``parameter.data``,
    and a stale weight would be a wrong number. ``stale``: it found that they have changed.
    """
    key = (id(parameters[1]), isa)
    ids = tuple(map(id, parameters))
    there = [p for p in parameters if p is not None]
    pointers = tuple(map(Tensor.data_ptr, there))
    shapes = [p.shape for p in there]
    found = _kept.get(key)
    if (
        found is not None
        and not stale
        and found.ids == ids
        and found.pointers == pointers
        and found.shapes == shapes
        and all(map(Tensor.is_contiguous, there))
    ):
        return found.packed
    if not all(map(Tensor.is_contiguous, there)):
        return freshly_packed(shape, parameters, isa)  # of copies
    arrays = []
    for first in range(0, len(parameters), 4):
        given = parameters[first : first + 4]
        at = [Array() if p is None else Array(p.data_ptr(), p.numel()) for p in given]
        arrays.append((Array * 4)(*at))
    # Before they are packed: what another thread changes meanwhile is noticed by the next run.
    prints = tuple(library().k2t_print(isa, array) for array in arrays)
    packed = replace(
        freshly_packed(shape, parameters, isa),
        arrays=tuple(arrays),
        sources=tuple(map(ctypes.addressof, arrays)),
        prints=prints,
    )
    watches = tuple(weakref.ref(p, lambda _: _kept.pop(key, None)) for p in there)
    _kept[key] = _Kept(packed, ids, watches, pointers, shapes)
    return packed


def freshly_packed(shape: Shape, parameters: Sequence[Tensor | None], isa: int) -> Packed:
    """The weights in the kernel's order.

    Raises:
        ValueError: one has another shape than its cell needs.
    """
    rows = GATES[shape.kind] * shape.units
    wanted = ((rows, shape.features), (rows, shape.units), (rows,), (rows,)) * (
        len(parameters) // 4
    )
    for p, right in zip(parameters, wanted, strict=True):
        if p is not None and p.shape != right:
            raise ValueError(f"a weight {list(right)} is expected, found {list(p.shape)}")
    size = library().k2t_packed_size(isa, ctypes.byref(shape))
    data = []
    for first in range(0, len(parameters), 4):
        data.append(room(size))
        direction = parameters[first : first + 4]
        sources = [None if p is None else p.detach().contiguous() for p in direction]
        pointers = [None if s is None else s.data_ptr() for s in sources]
        library().k2t_pack(isa, ctypes.byref(shape), *pointers, aligned(data[-1]))
    return Packed(tuple(data), tuple(map(aligned, data)))


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
