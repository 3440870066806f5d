"""Draw errors as a small PNG: a step is a column, a unit a row, the colour says how large."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from keras2torch_birnn.spec import Array

# The largest picture: more steps or units are joined, and the largest error of each is shown.
WIDTH, HEIGHT = 240, 96
# Exponents of ten: the range of the colours, and where errors begin to count.
LOW, EDGE, HIGH = -17.0, -9.0, 1.0
_MASKED, _UNKNOWN = 126, 255
# Colours by exponent: rounding errors from dark to light blue; others from yellow to dark red, with
# most of the contrast where errors of wrong models are.
_RIGHT = {LOW: (24, 52, 110), EDGE: (168, 205, 240)}
_WRONG = {
    EDGE: (255, 244, 190),
    -3.0: (255, 205, 70),
    -1.5: (244, 125, 32),
    -0.5: (214, 32, 32),
    HIGH: (74, 0, 40),
}
MASKED = (150, 110, 190)
_GREY = (128, 128, 128)


def draw(errors: Array, masked: Sequence[int] = ()) -> str:
    """Return errors (T, H) as the address of a picture, to be put into a page.

    masked: steps that the mask leaves out; a colour of their own, but for errors that count.
    """
    pixels = _indices(errors, masked)
    return f"data:image/png;base64,{base64.b64encode(_encode(pixels)).decode()}"


def _indices(errors: Array, masked: Sequence[int] = ()) -> Array:
    """Return the number of each pixel's colour: units from top to bottom, steps to the right."""
    shown = _shrink(_shrink(np.asarray(errors, np.float64).T, 0, HEIGHT), 1, WIDTH)
    with np.errstate(all="ignore"):
        exponents = np.clip(np.log10(shown), LOW, HIGH)
    exponents = np.where(shown == 0, LOW, exponents)
    right = (exponents - LOW) / (EDGE - LOW) * (_MASKED - 1)
    wrong = 127 + (exponents - EDGE) / (HIGH - EDGE) * 127
    left_out: Array = np.zeros((1, len(errors)), bool)
    left_out[0, list(masked)] = True
    left_out = _shrink(left_out.astype(float) - 1, 1, WIDTH) >= 0  # any of those that are joined
    numbers = np.where(exponents <= EDGE, np.where(left_out, _MASKED, right), wrong)
    return np.where(np.isnan(shown), _UNKNOWN, numbers).astype(np.uint8)


def _shrink(values: Array, axis: int, most: int) -> Array:
    """Join neighbours along an axis, if there are too many, by their largest value."""
    count = values.shape[axis]
    if count <= most:
        return values
    starts = np.linspace(0, count, most, endpoint=False).astype(int)
    return np.asarray(np.fmax.reduceat(values, starts, axis=axis))


def position(error: float) -> float:
    """Return the place of an error on the logarithmic scale, in percent of its length."""
    exponent = float(np.clip(np.log10(error), LOW, HIGH)) if error else LOW
    return 100 * (exponent - LOW) / (HIGH - LOW)


def every_error() -> Array:
    """Return errors (T, 1) whose picture is the scale of the colours."""
    return np.asarray(10 ** np.linspace(LOW, HIGH, WIDTH)[:, None])


def palette() -> list[tuple[int, int, int]]:
    """Return the colours: of rounding errors, of masked steps, of other errors, of unknown ones."""
    return [*_blend(_RIGHT, _MASKED), MASKED, *_blend(_WRONG, 128), _GREY]


def _blend(stops: dict[float, tuple[int, int, int]], count: int) -> list[tuple[int, int, int]]:
    at = np.linspace(min(stops), max(stops), count)
    parts = [
        np.rint(np.interp(at, list(stops), part)) for part in zip(*stops.values(), strict=True)
    ]
    return [(int(r), int(g), int(b)) for r, g, b in zip(*parts, strict=True)]


def _encode(numbers: Array) -> bytes:
    """Return a PNG whose pixels are numbers of colours."""
    height, width = numbers.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), numbers], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = (
        (b"IHDR", head),
        (b"PLTE", bytes(value for colour in palette() for value in colour)),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
