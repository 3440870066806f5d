"""CRC-32C (Castagnoli), the checksum of TensorFlow's checkpoints, over whole arrays in NumPy.

The state of a CRC is linear in the bits it has seen. So the first half of a block can be moved past
the second half (what zero bytes do to a state, looked up for 16 bits at a time) and added to it by
XOR, until one word is left. See docs/decisions for why there is no package for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_POLYNOMIAL = 0x82F63B78  # bits reversed
_ALL = 0xFFFFFFFF
_BLOCK = 1 << 18  # bytes; a power of two
_MASK_DELTA = 0xA282EAD8


def crc32c(pieces: Iterable[bytes | bytearray | memoryview]) -> int:
    """Compute the CRC-32C of all pieces, one after another."""
    state = _ALL
    for piece in pieces:
        view = memoryview(piece).cast("B")
        for start in range(0, len(view), _BLOCK):
            state = _update(state, view[start : start + _BLOCK])
    return state ^ _ALL


def masked(crc: int) -> int:
    """Return what TensorFlow stores for a CRC-32C (2.15 ``lib/hash/crc32c.h``)."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & _ALL


def _update(state: int, block: memoryview) -> int:
    """Return the state after one block. Zeros in front of it change nothing: they follow on 0."""
    count = 1 << max(0, (len(block) - 1).bit_length() - 2)
    words = np.zeros(count, "<u4")
    words.view(np.uint8)[4 * count - len(block) :] = block
    folded: Words = words.astype(np.uint32, copy=False)
    while folded.size > 1:
        half = folded.size // 2
        folded = folded[half:] ^ _after_zeros(folded[:half], (4 * half).bit_length() - 1)
    moved = np.array([state], np.uint32)
    for power in range(len(block).bit_length()):
        if len(block) >> power & 1:
            moved = _after_zeros(moved, power)
    return int(moved[0] ^ _after_zeros(folded, 2)[0])


def _after_zeros(states: Words, power: int) -> Words:
    """Return the states after 2**power zero bytes."""
    low, high = _tables(power)
    # No index is out of range: "wrap" only spares NumPy a check, and a copy in wider integers.
    moved = low.take(states & np.uint32(0xFFFF), mode="wrap")
    moved ^= high.take(states >> np.uint32(16), mode="wrap")
    return moved


@cache
def _tables(power: int) -> tuple[Words, Words]:
    """Return what 2**power zero bytes do to the lower and to the upper 16 bits of a state."""
    one, polynomial = np.uint32(1), np.uint32(_POLYNOMIAL)
    bits: Words = one << np.arange(32, dtype=np.uint32)
    if power == 0:
        for _ in range(8):
            bits = bits >> one ^ (bits & one) * polynomial
    else:
        bits = _after_zeros(_after_zeros(bits, power - 1), power - 1)
    return _combinations(bits[:16]), _combinations(bits[16:])


def _combinations(bits: Words) -> Words:
    """Return the XOR of every subset of 16 words; bit ``i`` of the index takes word ``i``."""
    table = np.zeros(1, np.uint32)
    for bit in bits:
        table = np.concatenate([table, table ^ bit])
    return table
