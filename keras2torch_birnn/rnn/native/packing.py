"""Weights in the kernel's order, kept as long as their parameters hold the same values.

G gates, H units, F features, D directions.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from keras2torch_birnn.rnn.native.library import GATES, Shape, library

# One direction's parameters: weight_ih (G*H, F), weight_hh (G*H, H), bias_ih, bias_hh (G*H,).
Parameters: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Packed:
    """Packed weights of all directions. ``addresses``: where each lies, for the kernel."""

    data: tuple[Tensor, ...]
    addresses: tuple[int, ...]


@dataclass(frozen=True)
class _Kept:
    """Packed weights, the parameters they belong to, and copies of the values these had then.

    ``ids`` of the parameters are theirs alone as long as this is kept, for it goes with the first
    of them (``watches``). ``arrays``: for C, where their values lie, where the copies do, and how
    many there are.
    """

    packed: Packed
    ids: tuple[int, ...]
    watches: tuple[weakref.ref[Tensor], ...]
    copies: tuple[Tensor, ...]
    pointers: tuple[int, ...]
    shapes: list[torch.Size]
    arrays: tuple[Any, Any, Any]


_kept: dict[tuple[int, int], _Kept] = {}


def packed_before(shape: Shape, parameters: Sequence[Tensor | None], isa: int) -> Packed:
    """The weights in the kernel's order, from last time if their values are the same.

    parameters: four for each direction. Values are compared, every one, on every call: torch counts
    the changes of a tensor, but not those written through ``parameter.data``, and a stale weight
    would be a wrong number.
    """
    key = (id(parameters[1]), isa)
    ids = tuple(map(id, parameters))
    there = [p for p in parameters if p is not None]
    pointers = tuple(map(Tensor.data_ptr, there))
    shapes = [p.shape for p in there]
    found = _kept.get(key)
    if (
        found is not None
        and found.ids == ids
        and found.pointers == pointers
        and found.shapes == shapes
        and all(map(Tensor.is_contiguous, there))
        and library().k2t_same(len(pointers), *found.arrays)
    ):
        return found.packed
    packed = freshly_packed(shape, parameters, isa)
    watches = tuple(weakref.ref(p, lambda _: _kept.pop(key, None)) for p in there)
    copies = tuple(p.detach().clone(memory_format=torch.contiguous_format) for p in there)
    count = len(there)
    arrays = (
        (ctypes.c_void_p * count)(*pointers),
        (ctypes.c_void_p * count)(*(c.data_ptr() for c in copies)),
        (ctypes.c_int64 * count)(*(c.numel() for c in copies)),
    )
    _kept[key] = _Kept(packed, ids, watches, copies, pointers, shapes, arrays)
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
