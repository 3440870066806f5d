"""Index of a checkpoint: a table of LevelDB, and its CRC-32C."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
import numpy.typing as npt

from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError, invalid
from keras2torch_birnn.readers.input_files import Window
from keras2torch_birnn.readers.tensorflow.object_graph import read_varint

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


# ---- tables --------------------------------------------------------------------------------------


# The sorted table of a checkpoint (``NAME.index``): keys and values in checked blocks.
#
# Source: TensorFlow 2.15 ``lib/io/format.cc``, ``block.cc`` and ``table_format.txt`` (LevelDB's).


MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER_BYTES = 48
_RAW, _SNAPPY = 0, 1
_TRAILER_BYTES = 5  # the type of a block, and its checksum
_RESTART_BYTES = 4


def is_table(window: Window) -> bool:
    """Tell whether a file ends as a sorted table does."""
    return window.head(len(MAGIC), max(0, window.size - len(MAGIC))) == MAGIC


def read_table(window: Window) -> dict[bytes, memoryview]:
    """Return all values of a table by key.

    Raises:
        InvalidModelFileError: damaged, too large, or compressed.
    """
    if window.size > limits.MAX_TABLE_BYTES:
        raise invalid(f"longer than {limits.MAX_TABLE_BYTES} bytes")
    if window.size < _FOOTER_BYTES or not is_table(window):
        raise _damaged("it does not end as an index of a checkpoint does")
    data = memoryview(window.read(window.size))
    blocks, footer = data[:-_FOOTER_BYTES], data[-_FOOTER_BYTES:]
    _, at = _read_range(footer, 0)  # of the blocks about other blocks, of which there are none
    root, _ = _read_range(footer, at)
    found: dict[bytes, memoryview] = {}
    last, key_bytes, free_from = None, 0, 0
    for _, position in _entries(_read_block(blocks, root)):
        block, _ = _read_range(position, 0)
        if block.start < free_from:
            raise _damaged("blocks out of order")
        free_from = block.stop
        for key, value in _entries(_read_block(blocks, block)):
            if last is not None and key <= last:
                raise _damaged("keys out of order")
            found[key], last = value, key
            key_bytes += len(key)
            if len(found) > limits.MAX_TABLE_KEYS or key_bytes > limits.MAX_TABLE_BYTES:
                raise invalid("too many keys")
    return found


def _read_range(data: memoryview, at: int) -> tuple[range, int]:
    """Read where a block is; behind it are its type, one byte, and its checksum."""
    offset, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return range(offset, offset + size), at


def _read_block(data: memoryview, block: range) -> memoryview:
    """Return the content of a block whose checksum is right."""
    end = block.stop
    if end + _TRAILER_BYTES > len(data):
        raise InvalidModelFileError("a block beyond the end of the file", "truncated file?")
    kind = data[end]
    stored = int.from_bytes(data[end + 1 : end + _TRAILER_BYTES], "little")
    if masked(crc32c([data[block.start : end + 1]])) != stored:
        raise _damaged("the checksum of a block is wrong")
    if kind == _SNAPPY:
        raise InvalidModelFileError(
            "a block that is compressed with snappy", "save the checkpoint again in TensorFlow 2"
        )
    if kind != _RAW:
        raise _damaged(f"a block of type {kind}")
    return data[block.start : end]


def _entries(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield keys and values. A key is the beginning of the one before it, and more bytes."""
    if len(block) < _RESTART_BYTES:
        raise _damaged("a block without an end")
    restarts = int.from_bytes(block[-_RESTART_BYTES:], "little")
    end = len(block) - _RESTART_BYTES * (restarts + 1)
    if end < 0:
        raise _damaged("a block without an end")
    at, key = 0, b""
    while at < end:
        shared, at = read_varint(block[:end], at)
        more, at = read_varint(block[:end], at)
        size, at = read_varint(block[:end], at)
        if shared > len(key) or more + size > end - at or shared + more > limits.MAX_NAME_BYTES:
            raise _damaged("an entry that is longer than its block")
        key = key[:shared] + bytes(block[at : at + more])
        yield key, block[at + more : at + more + size]
        at += more + size


def _damaged(finding: str) -> InvalidModelFileError:
    return InvalidModelFileError(finding, "the file is damaged; copy it again")
