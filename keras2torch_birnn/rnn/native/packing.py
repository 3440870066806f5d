"""Weights in the kernel's order, cached as long as their parameters hold the same values.

G gates, H units, F features, D directions.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from keras2torch_birnn.rnn.native.codes import GATES
from keras2torch_birnn.rnn.native.library import Array, Shape, Weights, fingerprint, library


@dataclass(frozen=True)
class Packed:
    """The weights of all directions as the kernel takes them.

    address: of a ``K2tWeights``. unchecked: the address of the same without sources and
    fingerprints, which the kernel then does not compare. alive: objects that these point to.
    In the cache: the shapes of the parameters, and the storages that hold them with their
    addresses. It is dropped when the first storage is freed, or moves from its address.
    """

    address: int
    unchecked: int
    alive: tuple[Any, ...]
    shapes: tuple[torch.Size, ...] = ()
    storages: tuple[weakref.ref[torch.UntypedStorage], ...] = ()
    places: tuple[int, ...] = ()

    def has_moved(self) -> bool:
        """Return whether a storage has another address than before, as after a resize."""
        now = [storage() for storage in self.storages]
        return any(s is None or s.data_ptr() != at for s, at in zip(now, self.places, strict=True))


_SHAPE = attrgetter("shape")

# By kind of cell, instruction set and the parameters' addresses, whose values the kernel compares.
# Not by the parameters: torch cannot swap one with a weak reference.
_cache: dict[tuple[int, ...], Packed] = {}


def cached_pack(
    kind: int, parameters: Sequence[Tensor | None], isa: int, *, stale: bool = False
) -> Packed:
    """Return the weights in the kernel's order, cached if their addresses are those of last time.

    parameters: four for each direction. The kernel compares fingerprints of all values whenever it
    runs: torch counts the changes of a tensor, but not those through ``parameter.data``, and a
    stale weight would be a wrong number. stale: the kernel found that they have changed.
    """
    present = [p for p in parameters if p is not None]
    if not all(map(Tensor.is_contiguous, present)):
        return pack(kind, parameters, isa)  # of copies
    shapes = tuple(map(_SHAPE, present))
    key: tuple[int, ...] = (kind, isa, *map(Tensor.data_ptr, present))
    if len(present) < len(parameters):
        key += tuple(p is None for p in parameters)
    found = None if stale else _cache.get(key)
    if found is not None and found.shapes == shapes:
        return found
    arrays = []
    for first in range(0, len(parameters), 4):
        given = parameters[first : first + 4]
        at = [Array() if p is None else Array(p.data_ptr(), p.numel()) for p in given]
        arrays.append((Array * 4)(*at))
    # Before they are packed: the next run notices changes by another thread meanwhile.
    fingerprints = [fingerprint(isa, array) for array in arrays]
    packed = pack(kind, parameters, isa, arrays, fingerprints)
    storages = [p.untyped_storage() for p in present]
    watches = tuple(weakref.ref(s, lambda _: _cache.pop(key, None)) for s in storages)
    for other in list(_cache):  # any of which may go meanwhile, with memory that is collected
        found = _cache.get(other)
        if found is not None and found.has_moved():
            _cache.pop(other, None)
    _cache[key] = replace(
        packed, shapes=shapes, storages=watches, places=tuple(s.data_ptr() for s in storages)
    )
    return packed


def pack(
    kind: int,
    parameters: Sequence[Tensor | None],
    isa: int,
    arrays: Sequence[Any] = (),
    fingerprints: Sequence[int] = (),
    *,
    apart: bool = False,
) -> Packed:
    """Pack the weights in the kernel's order.

    apart: the weights of each gate by themselves, for gates that read other inputs and states.
    arrays, fingerprints: of the parameters of each direction, for the kernel to compare as it runs;
    none if it need not.

    Raises:
        ValueError: a weight has another shape than its cell needs.
    """
    features, units = weight_sizes(parameters)
    rows, directions = GATES[kind] * units, len(parameters) // 4
    wanted = ((rows, features), (rows, units), (rows,), (rows,)) * directions
    for p, right in zip(parameters, wanted, strict=True):
        if p is not None and p.shape != right:
            raise ValueError(f"a weight {list(right)} is expected, found {list(p.shape)}")
    shape = Shape(kind, features, units, apart)
    size = library().k2t_packed_size(isa, ctypes.byref(shape))
    data = []
    for first in range(0, len(parameters), 4):
        data.append(empty_aligned(size))
        direction = parameters[first : first + 4]
        sources = [None if p is None else p.detach().contiguous() for p in direction]
        pointers = [None if s is None else s.data_ptr() for s in sources]
        library().k2t_pack(isa, ctypes.byref(shape), *pointers, aligned_address(data[-1]))
    packed = (shape, directions, tuple(map(aligned_address, data)))
    checked = Weights(*packed, tuple(map(ctypes.addressof, arrays)), tuple(fingerprints))
    unchecked = Weights(*packed)
    alive = (checked, unchecked, *data, *arrays)
    return Packed(ctypes.addressof(checked), ctypes.addressof(unchecked), alive)


def weight_sizes(parameters: Sequence[Tensor | None]) -> tuple[int, int]:
    """Return F and H of the first direction's weights.

    Raises:
        ValueError: there are no such weights.
    """
    ih, hh = parameters[:2]
    if ih is None or hh is None or ih.dim() != 2 or hh.dim() != 2:
        raise ValueError("weight_ih and weight_hh of two dimensions are expected")
    return ih.shape[1], hh.shape[1]


ALIGNED = 16  # floats in a cache line


def empty_floats(*shape: int) -> Tensor:
    """Return uninitialized float32 on the CPU, whatever torch's default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def empty_aligned(count: int) -> Tensor:
    """Return uninitialized memory for ``count`` floats from its ``aligned_address`` on."""
    return empty_floats(count + ALIGNED)


def aligned_address(data: Tensor) -> int:
    """Return the first address in data that starts a cache line."""
    line = ALIGNED * 4
    return (data.data_ptr() + line - 1) // line * line
