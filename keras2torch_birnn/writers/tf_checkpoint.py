"""Checksums of a TensorFlow checkpoint after tensors were replaced in its shards.

The index holds the checksum of every tensor, and one of each of its own blocks. Both keep their
length, so nothing in it moves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import partial

from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.readers.tensorflow.bundle import SummedArray, TensorBundle
from keras2torch_birnn.readers.tensorflow.crc32c import crc32c, masked
from keras2torch_birnn.readers.tensorflow.table import Handle, locate_values
from keras2torch_birnn.writers.copies import FileCopies

_CHECKSUM_TAG = 6 << 3 | 5  # the last field of an entry: number 6, of 4 bytes


def update_checksums(
    copies: FileCopies, bundle: TensorBundle, changed: Iterable[SummedArray]
) -> None:
    """Write the checksums of these tensors, as they are in the copy, into its index.

    Raises:
        InvalidModelFileError: an entry of the index has no checksum.
    """
    data, values = locate_values(bundle.index)
    blocks: set[Handle] = set()
    for array in changed:
        value = values[array.key.encode()]
        old = struct.pack("<BI", _CHECKSUM_TAG, array.checksum)
        if bytes(data[value.stop - len(old) : value.stop]) != old:
            raise InvalidModelFileError(
                "an entry of the index does not end with its checksum",
                "save the checkpoint again",
                place=printable(array.path),
            )
        checksum = masked(crc32c(array.pieces(partial(copies.read, array.window))))
        copies.put(bundle.index, value.stop - 4, struct.pack("<I", checksum))
        blocks.add(value.block)
    for block in blocks:
        content = copies.read(bundle.index, block.offset, block.size + 1)  # and its type
        end = block.offset + len(content)
        copies.put(bundle.index, end, struct.pack("<I", masked(crc32c([content]))))
