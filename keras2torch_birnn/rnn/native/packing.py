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

from keras2torch_birnn.rnn.native.library import Shape, library

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

    ``pointers``, ``copied`` and ``sizes`` are the same for C: where the parameters' values lie,
    where the copies do, and how many there are.
    """

    packed: Packed
    parameters: tuple[weakref.ref[Tensor] | None, ...]
    copies: tuple[Tensor | None, ...]
    pointers: tuple[int, ...]
    arrays: tuple[Any, Any, Any]


_kept: dict[tuple[int, int], _Kept] = {}


def packed_before(shape: Shape, parameters: Sequence[Tensor | None], isa: int) -> Packed:
    """The weights in the kernel's order, from last time if their values are the same.

    parameters: four for each direction. Values are compared, every one, on every call: torch counts
    the changes of a tensor, but not those written through ``parameter.data``, and a stale weight
    would be a wrong number.
    """
    key = (id(parameters[1]), isa)
    found = _kept.get(key)
    if found is not None and _unchanged(found, parameters):
        return found.packed
    packed = freshly_packed(shape, parameters, isa)
    refs = tuple(
        None if p is None else weakref.ref(p, lambda _: _kept.pop(key, None)) for p in parameters
    )
    copies = tuple(
        None if p is None else p.detach().clone(memory_format=torch.contiguous_format)
        for p in parameters
    )
    there = [(p, c) for p, c in zip(parameters, copies, strict=True) if p is not None]
    pointers = tuple(p.data_ptr() for p, _ in there)
    arrays = (
        (ctypes.c_void_p * len(there))(*pointers),
        (ctypes.c_void_p * len(there))(*(c.data_ptr() for _, c in there if c is not None)),
        (ctypes.c_int64 * len(there))(*(p.numel() for p, _ in there)),
    )
    _kept[key] = _Kept(packed, refs, copies, pointers, arrays)
    return packed


def _unchanged(found: _Kept, parameters: Sequence[Tensor | None]) -> bool:
    """Whether these are the parameters that were packed, with the values that they had."""
    if len(parameters) != len(found.parameters):
        return False
    at = 0
    for reference, copy, p in zip(found.parameters, found.copies, parameters, strict=True):
        if p is None or reference is None or copy is None:
            if p is not None or reference is not None:
                return False
            continue
        if not (
            reference() is p
            and p.data_ptr() == found.pointers[at]
            and p.shape == copy.shape
            and p.is_contiguous()
        ):
            return False
        at += 1
    return bool(library().k2t_same(len(found.pointers), *found.arrays))


def freshly_packed(shape: Shape, parameters: Sequence[Tensor | None], isa: int) -> Packed:
    """The weights in the kernel's order."""
    floats = library().k2t_packed_size(isa, ctypes.byref(shape))
    data = []
    for first in range(0, len(parameters), 4):
        data.append(room(floats))
        direction = parameters[first : first + 4]
        sources = [None if p is None else p.detach().contiguous() for p in direction]
        pointers = [None if s is None else s.data_ptr() for s in sources]
        library().k2t_pack(isa, ctypes.byref(shape), *pointers, aligned(data[-1]))
    return Packed(tuple(data), tuple(map(aligned, data)))


_ALIGNED = 16  # floats in a cache line


def room(floats: int) -> Tensor:
    """Memory for so many floats from an ``aligned`` address on."""
    return torch.empty(floats + _ALIGNED, dtype=torch.float32)


def aligned(data: Tensor) -> int:
    """The first address in data that starts a cache line."""
    line = _ALIGNED * 4
    return (data.data_ptr() + line - 1) // line * line
