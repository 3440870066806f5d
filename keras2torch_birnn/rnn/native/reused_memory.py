"""Reuse large memory for tensors that every call or training step makes anew.

The C library gives large memory back to the system when it is freed, and the system clears it page
by page before its next use: measured as a quarter of a step of training.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from keras2torch_birnn.rnn.native.packing import aligned_address, empty_aligned, empty_floats

# Bytes. Less is left to the C library, which does not give it back.
LARGE_BYTES = 1 << 20
# What waits for its next use: so many bytes at most, and for so many requests.
IDLE_BYTES = 1 << 30
IDLE_REQUESTS = 1000


class _Room(NamedTuple):
    """Memory, with room for so many floats from its aligned address on."""

    memory: Tensor
    floats: int


class _Idle(NamedTuple):
    """Memory that waits for its next use. since: the number of requests before it was freed."""

    room: _Room
    since: int


class ReusedMemory:
    """Memory for tensors; that of a tensor is used again when nothing refers to it any more.

    Several threads may use it.
    """

    def __init__(self) -> None:
        self.renew_lock()  # for the next two
        self._idle: list[_Idle] = []
        self._requests = 0
        self._freed: deque[_Room] = deque()

    def renew_lock(self) -> None:
        """Make a new lock after a fork: its owner may be a thread that the child does not have."""
        self._lock = threading.Lock()

    def empty(self, *shape: int) -> Tensor:
        """Return uninitialized float32 on the CPU. Its storage may not be resized."""
        count = math.prod(shape)
        if 4 * count < LARGE_BYTES:
            return empty_floats(*shape)
        room = self._take(_rounded(count))
        start = (aligned_address(room.memory) - room.memory.data_ptr()) // 4
        numbers = room.memory.numpy()[start : start + count]
        # Held by the tensor's storage alone.
        weakref.finalize(numbers, self._give_back, room).atexit = False
        return torch.from_numpy(numbers).view(shape)

    def _take(self, count: int) -> _Room:
        with self._lock:
            self._requests += 1
            found = self._find(count)
        self._keep_freed()
        return found or _Room(empty_aligned(count), count)

    def _find(self, count: int) -> _Room | None:
        while self._idle and self._requests - self._idle[0].since > IDLE_REQUESTS:
            del self._idle[0]
        # The last that was freed is the likeliest to be in a cache.
        for place in reversed(range(len(self._idle))):
            if self._idle[place].room.floats == count:
                return self._idle.pop(place).room
        return None

    def _give_back(self, room: _Room) -> None:
        self._freed.append(room)
        self._keep_freed()

    def _keep_freed(self) -> None:
        # A collection of garbage may call this at any moment, also while its own thread has the
        # lock: then whoever has it goes on with what was freed meanwhile.
        while self._freed and self._lock.acquire(blocking=False):
            try:
                while self._freed:
                    self._idle.append(_Idle(self._freed.popleft(), self._requests))
                while sum(one.room.memory.nbytes for one in self._idle) > IDLE_BYTES:
                    del self._idle[0]
            finally:
                self._lock.release()


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
