"""The tensors of a checkpoint: an index (``PREFIX.index``) and the shards that it counts.

The index is a table of LevelDB with CRC-32C. Source: TensorFlow 2.15
``core/protobuf/tensor_bundle.proto`` and ``core/util/tensor_bundle/tensor_bundle.cc``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError, damaged, in_place, invalid, printable
from keras2torch_birnn.readers.input_files import INDEX, Folder, Window
from keras2torch_birnn.readers.store import STORED_DTYPES, Array, Kind, Store, StoredArray
from keras2torch_birnn.readers.tensorflow.object_graph import Message, as_bytes, fields, read_varint

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
    """Return all values of a table by key."""
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


# ---- tensors -------------------------------------------------------------------------------------


# core/framework/types.proto -> a key of STORED_DTYPES
_DTYPES: Mapping[int, str] = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "<u1",
    5: "<i2",
    6: "<i1",
    9: "<i8",
    10: "bool",
    14: "bfloat16",
    17: "<u2",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}
_STRING = 7
KEY_ENDING = "/.ATTRIBUTES/VARIABLE_VALUE"  # of the key of a tracked variable
_PIECE = 1 << 22
_LITTLE_ENDIAN = 0
_PRODUCER = 1  # the version of the format that is known
_CRC_BYTES = 4


@dataclass(frozen=True)
class _Entry:
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    sliced: bool


@dataclass(frozen=True)
class SummedArray(StoredArray):
    """An array with a checksum."""

    checksum: int = 0

    def read_stored(self) -> Array:
        """Read the numbers as they are stored, and compare them with the checksum."""
        values = super().read_stored()
        data = values.reshape(-1).view(np.uint8).data
        pieces = (bytes(data[at : at + _PIECE]) for at in range(0, len(data), _PIECE))
        with in_place(printable(self.path)):
            if masked(crc32c(pieces)) != self.checksum:
                raise _wrong_checksum()
        return values


class TensorBundle(Store):
    """An open checkpoint, a store without groups. A path is a key of the table.

    Raises:
        InvalidModelFileError: damaged or hostile, or one of its files is missing.
    """

    def __init__(self, members: Folder, prefix: str) -> None:
        table = read_table(members.open(f"{prefix}{INDEX}"))
        header = table.pop(b"", None)
        if header is None:
            raise damaged("an index without header")
        count = _count_shards(header)
        self._values = table
        self._shards = [
            members.open(f"{prefix}.data-{number:05d}-of-{count:05d}") for number in range(count)
        ]

    def kind(self, path: str) -> Kind | None:
        """Return the kind of object at ``path``; None if there is none."""
        return "dataset" if path.encode() in self._values else None

    def members(self, group: str) -> dict[str, Kind]:
        """Return nothing: there are no groups."""
        return {}

    def keys(self) -> list[str]:
        """Return the keys of all tensors of a dtype that can be read, in order."""
        found = []
        for key in (raw.decode("utf-8", "backslashreplace") for raw in self._values):
            with in_place(printable(key)):
                if self._entry(key).dtype in _DTYPES:
                    found.append(key)
        return found

    def text(self, key: str, most: int) -> bytes:
        """Read a single string whose checksum is right, of at most ``most`` bytes."""
        with in_place(printable(key)):
            entry = self._entry(key)
            if entry.dtype != _STRING or entry.shape or not 0 < entry.size <= most:
                raise invalid("no text of a size that is allowed")
            return _split_text(self._part(entry).read(entry.size), entry)

    def arrays(self, paths: Sequence[str]) -> list[StoredArray]:
        """Return arrays that are checked but not read; reading them checks their checksums.

        Raises:
            InvalidModelFileError: not there, of a dtype without numbers, damaged.
        """
        entries: dict[str, _Entry] = {}
        found: list[StoredArray] = []
        for path in paths:
            place = path.removesuffix(KEY_ENDING)
            with in_place(printable(place)):
                one = entries[path] = self._entry(path)
                _check_array(one)
                part, stored_as = self._part(one), _DTYPES[one.dtype]
            found.append(SummedArray(place, one.shape, stored_as, part, 0, one.checksum))
        ranges = sorted((e.shard, e.offset, e.offset + e.size) for e in entries.values() if e.size)
        for (shard, _, end), (other, start, _) in pairwise(ranges):
            if shard == other and start < end:  # memory is bounded by what the files hold
                raise invalid("two tensors in the same bytes")
        return found

    def _entry(self, key: str) -> _Entry:
        value = self._values.get(key.encode())
        if value is None:
            raise damaged("not in the index")
        entry = _read_entry(value)
        if entry.shard >= len(self._shards):
            raise damaged(f"in shard {entry.shard} of {len(self._shards)}")
        return entry

    def _part(self, entry: _Entry) -> Window:
        return self._shards[entry.shard].part(entry.offset, entry.size)


def _count_shards(header: memoryview) -> int:
    """Return the number of shards that a header tells."""
    facts = Message(header)
    if facts.number(2, _LITTLE_ENDIAN) != _LITTLE_ENDIAN:
        raise InvalidModelFileError("a big-endian checkpoint", "save it on another machine")
    if facts.message(3).number(2) > _PRODUCER:
        raise InvalidModelFileError(
            "a checkpoint of a newer format than this k2t knows", "upgrade keras2torch_birnn"
        )
    count = facts.number(1)
    if not 1 <= count <= limits.MAX_CHECKPOINT_SHARDS:
        raise invalid(f"{count} shards where 1 to {limits.MAX_CHECKPOINT_SHARDS} are allowed")
    return count


def _read_entry(value: memoryview) -> _Entry:
    entry = Message(value)
    shard, offset, size, checksum = map(entry.number, (3, 4, 5, 6))
    shape = _read_shape(entry.data(2))
    return _Entry(entry.number(1), shape, shard, offset, size, checksum, sliced=7 in entry)


def _read_shape(message: memoryview) -> tuple[int, ...]:
    """Read a TensorShapeProto; sizes of less than zero are refused as too large."""
    sizes: list[int] = []
    for number, found in fields(message):
        if number == 3:
            raise damaged("a tensor of unknown rank")
        if number == 2:
            sizes.append(Message(as_bytes(found)).number(1))
        if len(sizes) > limits.MAX_RANK or (sizes and sizes[-1] >= 1 << 48):
            raise invalid("a tensor of an absurd shape")
    return tuple(sizes)


def _split_text(stored: bytes, entry: _Entry) -> bytes:
    """Split a length, its checksum and the text."""
    data = memoryview(stored)
    size, at = read_varint(data, 0)
    checksum, text = data[at : at + _CRC_BYTES], data[at + _CRC_BYTES :]
    if size != len(text):
        raise damaged("a text of another length")
    length = size.to_bytes(4 if size < 1 << 32 else 8, "little")
    length_right = masked(crc32c([length])) == int.from_bytes(checksum, "little")
    if not length_right or masked(crc32c([length, checksum, text])) != entry.checksum:
        raise _wrong_checksum()
    return bytes(text)


def _check_array(entry: _Entry) -> None:
    if entry.sliced:
        raise InvalidModelFileError(
            "a variable in several slices", "save the model without partitioned variables"
        )
    if entry.dtype not in _DTYPES:
        raise invalid(f"a tensor of TensorFlow's dtype {entry.dtype}; numbers are expected")
    item = np.dtype(STORED_DTYPES[_DTYPES[entry.dtype]]).itemsize
    if math.prod(entry.shape) * item != entry.size:
        raise damaged(f"{entry.size} bytes for a tensor of shape {entry.shape}")


def _wrong_checksum() -> InvalidModelFileError:
    return InvalidModelFileError("the checksum is wrong", "the file is damaged; copy it again")
