"""Reuse large memory for tensors that every call or training step makes anew.

The C library gives large memory back to the system when it is freed, and the system clears it page
by page before its next use: measured as a quarter of a step of training.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import weakref
from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from keras2torch_birnn.rnn.native.packing import empty_floats
from keras2torch_birnn.torch_private import find, last_name

# Bytes. Less is left to the C library, which does not give it back.
LARGE_BYTES = 1 << 20
# What waits for its next use: so many bytes at most, and for so many requests.
IDLE_BYTES = 1 << 30
IDLE_REQUESTS = 1000
# Counts what holds a storage, by its handle. Without both of torch no memory is used again.
_count_holders: Callable[[int], int] | None = find("storage_handle") and find("count_holders")
_handle_of = attrgetter(last_name("storage_handle"))


class _Room(NamedTuple):
    """Memory of torch's own, which a tensor may resize as any other.

    ``address``: where its bytes are, as long as it is not resized or shared with a process.
    ``tensors``, ``references``: how many of both hold it while nothing else does. ``since``: the
    number of requests when it was asked for last.
    """

    storage: torch.UntypedStorage
    handle: int
    address: int
    tensors: int = 0
    references: int = 0
    since: int = 0

    def is_idle(self, count: Callable[[int], int]) -> bool:
        """Tell whether nothing else holds the memory: no tensor, and nobody its storage."""
        return (
            count(self.handle) == self.tensors and sys.getrefcount(self.storage) == self.references
        )

    def fits(self, size: int) -> bool:
        """Tell whether it is of this size, and where it was."""
        return self.storage.nbytes() == size and self.storage.data_ptr() == self.address


def _new_room(size: int, count: Callable[[int], int]) -> _Room:
    storage = torch.empty(size, dtype=torch.uint8, device="cpu").untyped_storage()
    room = _Room(storage, _handle_of(storage), storage.data_ptr())
    del storage
    return room._replace(tensors=count(room.handle), references=sys.getrefcount(room.storage))


class ReusedMemory:
    """Memory for tensors; that of a tensor is used again when nothing refers to it any more.

    Several threads may use it.
    """

    def __init__(self) -> None:
        self.renew_lock()  # for the next two
        self._rooms: list[_Room] = []  # in the order in which they were asked for
        self._requests = 0

    def renew_lock(self) -> None:
        """Make a new lock after a fork: its owner may be a thread that the child does not have."""
        self._lock = threading.Lock()

    def empty(self, *shape: int) -> Tensor:
        """Return uninitialized float32 on the CPU."""
        size = _rounded(4 * math.prod(shape))
        if not LARGE_BYTES <= size <= IDLE_BYTES or _count_holders is None:
            return empty_floats(*shape)
        with self._lock:
            room = self._take(size, _count_holders)
            tensor = empty_floats(0)
            # While the lock is held: until then the memory looks idle.
            tensor.set_(room.storage, 0, shape, _strides(shape))
        weakref.finalize(tensor, self._forget, _count_holders).atexit = False
        return tensor

    def _take(self, size: int, count: Callable[[int], int]) -> _Room:
        """Return idle memory of this size, or new one, and note when."""
        self._requests += 1
        self._drop_old()
        found = None
        # The last that was asked for is the likeliest to be in a cache.
        for place in reversed(range(len(self._rooms))):
            room = self._rooms[place]
            if room.is_idle(count) and room.fits(size):
                found = place if found is None else found
                if room.storage.resizable():  # not once NumPy has had it
                    found = place
                    break
        room = _new_room(size, count) if found is None else self._rooms.pop(found)
        self._rooms.append(room._replace(since=self._requests))
        return self._rooms[-1]

    def _drop_old(self) -> None:
        while self._rooms and self._requests - self._rooms[0].since > IDLE_REQUESTS:
            del self._rooms[0]

    def _forget(self, count: Callable[[int], int]) -> None:
        """Leave idle memory to the C library where there is too much of it.

        A collection of garbage may call this at any moment, also while its own thread has the lock.
        """
        if sum(room.storage.nbytes() for room in self._rooms) <= IDLE_BYTES:
            return
        if self._lock.acquire(blocking=False):
            try:
                idle = [room.is_idle(count) for room in self._rooms]
                pairs = list(zip(self._rooms, idle, strict=True))
                excess = sum(room.storage.nbytes() for room, free in pairs if free) - IDLE_BYTES
                kept = []
                for room, free in pairs:
                    if free and excess > 0:
                        excess -= room.storage.nbytes()
                    else:
                        kept.append(room)
                self._rooms = kept
            finally:
                self._lock.release()


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _rounded(count: int) -> int:
    """Round up by an eighth at most: batches differ a little in length."""
    step = 1 << max(count.bit_length() - 4, 0)
    return -(-count // step) * step


_memory = ReusedMemory()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_memory.renew_lock)


def empty_reused(*shape: int) -> Tensor:
    """Return uninitialized float32 on the CPU; large memory is used again when it is freed."""
    return _memory.empty(*shape)
