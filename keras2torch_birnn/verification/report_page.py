"""The page of ``k2t verify --report``: one file, which loads nothing from the net and runs nothing.

It has the tables that the terminal shows, and pictures of the errors of recurrent layers that
differ: a step is a column, a unit a row, the colour says how large the error is.
"""

from __future__ import annotations

import base64
import platform
import struct
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from keras2torch_birnn import __version__
from keras2torch_birnn.comparison.html import (
    STYLE,
    Table,
    Verdict,
    make_table,
    make_text,
    make_verdict,
)
from keras2torch_birnn.comparison.report import ErrorMap, ParityReport
from keras2torch_birnn.readers.input_files import hash_file, with_index
from keras2torch_birnn.saving.atomic import FileKind, NewFile, marked_by, write_atomically
from keras2torch_birnn.spec import Array

_MARK = "k2t verify"
REPORT = FileKind("the report", (".html",), marked_by(f'content="{_MARK}"'), instead="name another")

_HEAD = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="{_MARK}">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{STYLE}
body {{ margin: 0; }} .k2t {{ min-height: 100vh; box-sizing: border-box; }}
main {{ max-width: 68rem; margin: 0 auto; }} figure {{ margin: 1rem 0; }}
figure img {{ width: 100%; max-width: 40rem; height: 9rem; image-rendering: pixelated; }}
</style>
"""
_PICTURES = (
    "Each picture shows the row with the largest error: steps to the right, units downwards. Blue "
    "is rounding, yellow to dark red are errors of 1e-9 to 10, violet are masked steps, grey is "
    "not judged. In sequence: over all steps. Each step alone: from the state of the reference "
    "before it. All red in both: a wrong weight, gate or activation. In sequence alone a band "
    "that is its own mirror image: a reversed direction."
)


def write_report(
    report: ParityReport, path: Path, *, model: Path, out: Path | None, weights: Table | None
) -> None:
    """Write the result of ``verify`` as one HTML file. A report that is there is replaced.

    weights: the table of ``k2t map``; None if OUT alone was verified.

    Raises:
        OutputError: it cannot be written, or another file must not be replaced.
    """
    text = make_page(report, model=model, out=out, weights=weights)

    def write(file: Path) -> None:
        file.write_text(text, encoding="utf-8")

    write_atomically(NewFile(path, REPORT, write), overwrite=True)


def make_page(report: ParityReport, *, model: Path, out: Path | None, weights: Table | None) -> str:
    """Return the page as text."""
    tables = [*report.tables(), *([weights] if weights is not None else [])]
    body = [
        make_text("h1", f"k2t verify {(out or model).name}"),
        make_verdict(_tell(report, model, out)),
        make_table(Table("", ("", ""), (*_facts(model, out),))),
    ]
    for table in tables:
        body += [make_text("h2", table.title), make_table(table)]
    maps = [(layer.path, one) for layer in report.layers if not layer.ok for one in layer.maps]
    if maps:
        body += [make_text("h2", "Errors by step and unit"), make_text("p", _PICTURES)]
        body += [_figure(path, one) for path, one in maps]
    body += [make_text("p", note) for note in report.notes]
    title = make_text("title", f"k2t verify {(out or model).name}")
    whole = "\n".join(body)
    return f'{_HEAD}{title}</head><body class="k2t"><main>\n{whole}\n</main></body></html>\n'


def _tell(report: ParityReport, model: Path, out: Path | None) -> Verdict:
    """Return the verdict about these files."""
    first, second, verdict = model.name, (out or model).name, report.verdict
    does = "computes" if report.ok else "does not compute"
    told = f"{second} {does} what {first} computes" if out else f"{second} {does} what it stores"
    if verdict.kind == "unknown":
        told = f"It is not known whether {second} computes what {first} computes"
    return Verdict(verdict.kind, verdict.words, f"{told}. {verdict.sentence}")


def _facts(model: Path, out: Path | None) -> Iterator[tuple[str, str]]:
    import torch

    for kind, path in (("model", model), ("out", out)):
        if path is None:
            continue
        file = with_index(path)
        found = "a folder" if file.is_dir() else f"sha256 {hash_file(file)}"
        yield kind, f"{path}: {found}" + (f" ({file.name})" if file != path else "")
    versions = f"k2t {__version__}, torch {torch.__version__}, numpy {np.__version__}"
    yield "versions", f"{versions}, Python {platform.python_version()}"
    yield "machine", f"{platform.system()} {platform.machine()}"
    yield "made", datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


# ---- pictures ------------------------------------------------------------------------------------

# The largest picture: more steps or units are joined, and the largest error of each is shown.
_WIDTH, _HEIGHT = 240, 96
# Exponents of ten, and their colours: dark to light blue is rounding, then yellow to dark red.
_EDGE = -9.0
_STOPS = (-17.0, _EDGE, _EDGE + 0.01, -3.0, -1.5, -0.5, 1.0)
_COLOURS = np.array(
    (
        *((24, 52, 110), (168, 205, 240), (255, 244, 190), (255, 205, 70)),
        *((244, 125, 32), (214, 32, 32), (74, 0, 40)),
    )
)
_MASKED, _UNKNOWN = (150, 110, 190), (128, 128, 128)


def _figure(path: str, one: ErrorMap) -> str:
    data = base64.b64encode(encode_png(colour(one.errors, one.masked))).decode()
    steps, units = one.errors.shape
    said = f"{path}, {one.name}: {units} units, {steps} steps of row {one.row}"
    return (
        f"<figure>{make_text('figcaption', said)}"
        f'<img alt="errors" src="data:image/png;base64,{data}"></figure>'
    )


def colour(errors: Array, masked: Sequence[int] = ()) -> Array:
    """Return the colours (units, steps, 3) of errors (T, H).

    masked: steps that the mask leaves out; violet, but for errors that count.
    """
    shown = _shrink(_shrink(np.asarray(errors, np.float64).T, 0, _HEIGHT), 1, _WIDTH)
    with np.errstate(divide="ignore"):
        exponents = np.clip(np.log10(shown), _STOPS[0], _STOPS[-1])
    parts = [np.interp(exponents, _STOPS, channel) for channel in _COLOURS.T]
    pixels = np.rint(np.stack(parts, axis=-1))
    left_out = np.ones((1, len(errors)))
    left_out[0, list(masked)] = 0
    all_masked = _shrink(left_out, 1, _WIDTH) == 0
    pixels[(exponents <= _EDGE) & all_masked] = _MASKED
    pixels[np.isnan(shown)] = _UNKNOWN
    return np.asarray(pixels, np.uint8)


def _shrink(values: Array, axis: int, most: int) -> Array:
    """Join neighbours along an axis, if there are too many, by their largest value."""
    count = values.shape[axis]
    if count <= most:
        return values
    starts = np.linspace(0, count, most, endpoint=False).astype(int)
    return np.asarray(np.fmax.reduceat(values, starts, axis=axis))


def encode_png(pixels: Array) -> bytes:
    """Return pixels (height, width, 3) as a PNG."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
