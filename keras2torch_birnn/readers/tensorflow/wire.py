"""Protocol buffers on the wire: the fields of a message, and varints. No message is known here.

Source: protobuf.dev/programming-guides/encoding. Groups (wire types 3 and 4) are refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from keras2torch_birnn.errors import InvalidModelFileError, damaged
from keras2torch_birnn.readers.files.strict_json import decode_text
from keras2torch_birnn.readers.files.window import Window

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES = 10  # 64 bits, 7 in a byte
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}

Value = int | memoryview


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number at ``at``, of 64 bits without sign, and where the next byte is.

    Raises:
        InvalidModelFileError: it does not end.
    """
    value = 0
    for count, byte in enumerate(data[at : at + _VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + count + 1
    raise damaged("a number that does not end")


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Yield the number and the value of every field: an int, or the bytes of what has a length.

    Raises:
        InvalidModelFileError: no protocol buffer.
    """
    at, end = 0, len(message)
    while at < end:
        number, wire, at = _read_tag(message, at)
        if wire == _VARINT:
            value, at = read_varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = read_varint(message, at)
        else:
            size = _fixed_size(wire)
        if size > end - at:
            raise _cut_off()
        piece = message[at : at + size]
        yield number, piece if wire == _BYTES else int.from_bytes(piece, "little")
        at += size


def parts(message: Window) -> Iterator[tuple[int, Window]]:
    """Yield the number and the window of every field that has a length; nothing in it is read.

    Raises:
        InvalidModelFileError: no protocol buffer.
    """
    at = 0
    while at < message.size:
        head = memoryview(message.head(2 * _VARINT_BYTES, at))
        number, wire, used = _read_tag(head, 0)
        if wire == _BYTES:
            size, used = read_varint(head, used)
            if size > message.size - at - used:
                raise _cut_off()
            yield number, message.part(at + used, size)
            at += used + size
        elif wire == _VARINT:
            at += read_varint(head, used)[1]
        else:
            at += used + _fixed_size(wire)


def as_bytes(value: Value) -> memoryview:
    """Return the value of a field that holds bytes or a message.

    Raises:
        InvalidModelFileError: it holds a number.
    """
    if isinstance(value, memoryview):
        return value
    raise damaged("a number where bytes are expected")


def as_text(value: Value, place: str) -> str:
    """Return the value of a field that holds UTF-8 text.

    Raises:
        InvalidModelFileError: it does not.
    """
    return decode_text(bytes(as_bytes(value)), place=place)


class Message:
    """The fields of a message by their numbers; one that is absent is 0 or empty.

    Of a field that is there several times the last counts, as everywhere. What is of another type
    than is asked for is an InvalidModelFileError.
    """

    def __init__(self, data: memoryview) -> None:
        """Read the fields.

        Raises:
            InvalidModelFileError: no protocol buffer.
        """
        self._fields = dict(fields(data))

    def __contains__(self, field: int) -> bool:
        """Tell whether a field is there."""
        return field in self._fields

    def number(self, field: int, default: int = 0) -> int:
        """Return a number."""
        value = self._fields.get(field, default)
        if isinstance(value, int):
            return value
        raise damaged("bytes where a number is expected")

    def data(self, field: int) -> memoryview:
        """Return bytes."""
        return as_bytes(self._fields.get(field, memoryview(b"")))

    def text(self, field: int, place: str) -> str:
        """Return a text of UTF-8."""
        return as_text(self.data(field), place)

    def message(self, field: int) -> Message:
        """Return the message in a field."""
        return Message(self.data(field))


def _read_tag(data: memoryview, at: int) -> tuple[int, int, int]:
    tag, at = read_varint(data, at)
    if tag >> 3 == 0:
        raise damaged("a field without a number")
    return tag >> 3, tag & 7, at


def _fixed_size(wire: int) -> int:
    if wire not in _FIXED_SIZES:
        raise damaged(f"a field of wire type {wire}")
    return _FIXED_SIZES[wire]


def _cut_off() -> InvalidModelFileError:
    return InvalidModelFileError("a field that is longer than the file", "truncated file?")
