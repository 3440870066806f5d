"""Look at the first bytes inside of compressed data, to name what they are."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Mapping

from keras2torch_birnn.limits import MAX_LZMA_MEMORY

_HEAD = 4096  # bytes that are looked at


def _zlib(data: bytes) -> bytes:
    # 32: zlib or gzip, by the first bytes
    return zlib.decompressobj(wbits=32 + zlib.MAX_WBITS).decompress(data, _HEAD)


def _bz2(data: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(data, _HEAD)


def _lzma(data: bytes) -> bytes:
    return lzma.LZMADecompressor(memlimit=MAX_LZMA_MEMORY).decompress(data, _HEAD)


# First bytes -> how to decompress, and from where on: joblib's old format has a head before that.
_FORMATS: Mapping[bytes, tuple[Callable[[bytes], bytes], int]] = {
    b"\x1f\x8b": (_zlib, 0),
    b"\x78\x01": (_zlib, 0),
    b"\x78\x5e": (_zlib, 0),
    b"\x78\x9c": (_zlib, 0),
    b"\x78\xda": (_zlib, 0),
    b"ZF0x": (_zlib, 21),
    b"BZh": (_bz2, 0),
    b"\xfd7zXZ\0": (_lzma, 0),
    b"\x5d\0\0": (_lzma, 0),
}
_BROKEN = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError)


def head_inside(head: bytes) -> bytes:
    """Return the first bytes inside of compressed data; empty if there are none to be had."""
    for start, (decompress, at) in _FORMATS.items():
        if head.startswith(start):
            try:
                return decompress(head[at:])
            except _BROKEN:
                return b""
    return b""
