"""The page of ``k2t verify --report``: verdict, versions, weights, layers, heatmaps."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch

from keras2torch_birnn import __version__
from keras2torch_birnn.comparison.report import ErrorMap, LayerParity, ParityReport
from keras2torch_birnn.errors import escape_controls, printable
from keras2torch_birnn.html.elements import (
    Element,
    group,
    make,
    make_cell,
    make_section,
    make_table,
)
from keras2torch_birnn.html.notebook import VERDICTS, make_verdict
from keras2torch_birnn.html.style import STYLE
from keras2torch_birnn.porting.weight_map import MapRow
from keras2torch_birnn.readers.containers.files import with_index
from keras2torch_birnn.readers.files.sha256 import hash_file
from keras2torch_birnn.reporting import heatmap
from keras2torch_birnn.reporting.kind import MARK, REPORT
from keras2torch_birnn.saving.atomic import write_atomically
from keras2torch_birnn.spec import format_shape

# A browser that opens the page fetches nothing and runs nothing, whatever a file's names say.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LAYERS = (("layer", "code"), ("largest error", "number"), ("", "scale"), ("how it was judged", ""))
_WEIGHTS = (
    ("Keras weight", "code"),
    ("shape", "code"),
    ("torch tensor", "code"),
    ("shape", "code"),
    ("values", "number"),
    ("what was done", ""),
)


def write_report(
    report: ParityReport, path: Path, *, model: Path, out: Path | None, weights: Sequence[MapRow]
) -> None:
    """Write the result of ``verify`` as one HTML file. A report that is there is replaced.

    weights: the table of ``k2t map``; empty if OUT alone was verified.

    Raises:
        OutputError: it cannot be written, or another file must not be replaced.
    """
    text = make_page(report, model=model, out=out, weights=weights)
    write_atomically(path, lambda file: _write(file, text), REPORT, overwrite=True)


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def make_page(
    report: ParityReport, *, model: Path, out: Path | None, weights: Sequence[MapRow]
) -> str:
    """Return the page as text."""
    name = escape_controls((out or model).name)
    page = make("html", attributes={"lang": "en"})
    page.append(_head(name))
    header = group("header", "", _header(report, name, model, out, weights))
    main = group("main", "", _sections(report, weights))
    page.append(group("body", "", (header, main, make("footer", _footer()))))
    return "<!DOCTYPE html>\n" + ElementTree.tostring(page, encoding="unicode", method="html")


def _head(name: str) -> Element:
    described = (
        {"charset": "utf-8"},
        {"name": "generator", "content": MARK},
        {"http-equiv": "Content-Security-Policy", "content": _POLICY},
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
    )
    style = make("style")
    style.text = STYLE  # our own, with ends of lines
    metas = (make("meta", attributes=one) for one in described)
    return group("head", "", (*metas, make("title", f"k2t verify {name}"), style))


# ---- the verdict ---------------------------------------------------------------------------------


def _header(
    report: ParityReport, name: str, model: Path, out: Path | None, weights: Sequence[MapRow]
) -> Iterable[Element]:
    yield make("p", "k2t verify", {"class": "kicker"})
    yield make("h1", name)
    yield make_verdict(report.verdict, VERDICTS[report.verdict], _verdict(report, model, out))
    yield group("dl", "figures", _figures(report, weights))
    yield group("dl", "facts", _facts(model, out))


def _verdict(report: ParityReport, model: Path, out: Path | None) -> str:
    """Return the result in one sentence."""
    first, second = escape_controls(model.name), escape_controls((out or model).name)
    error = f"the largest error of an output is {report.max_abs_error:.1e}"
    if report.ok and out is None:
        return f"{second} computes the numbers that were stored in it: {error}."
    if report.ok:
        count = len(report.layers)
        layers = f", and all {count} layers are right in float64" if count else ""
        alone = f" Not compared with Keras: {report.without_keras}." if report.without_keras else ""
        return f"{second} computes what {first} computes: {error}{layers}.{alone}"
    wrong = next((layer for layer in report.layers if not layer.ok), None)
    if wrong is not None:
        place = f"{printable(wrong.path)}: {printable(wrong.where)}"
        return f"{second} does not compute what {first} computes. The first wrong layer is {place}."
    if report.judged:
        return f"{second} does not compute what {first} computes: {error}."
    if report.without_keras:
        return f"Nothing can be judged: {report.without_keras}."
    return "No input was found on which rounding errors are small enough to judge."


def _figures(report: ParityReport, weights: Sequence[MapRow]) -> Iterable[Element]:
    """Yield the key figures for the head of the page."""
    found = [("largest error of an output", f"{report.max_abs_error:.1e}")]
    if report.layers:
        right = sum(layer.ok for layer in report.layers)
        found.append(("layers that are right", f"{right} of {len(report.layers)}"))
    if weights:
        values = sum(_count(row) for row in weights if row.keras)
        found.append(("values from Keras", f"{values:,}"))
    for name, value in found:
        yield group("div", "", (make("dt", name), make("dd", value)))


def _facts(model: Path, out: Path | None) -> Iterable[Element]:
    for kind, path in (("model", model), *([("out", out)] if out is not None else [])):
        yield make("dt", kind)
        code = make("code", escape_controls(path))
        yield group("dd", "", (code, make("code", f"sha256 {_sha256(path)}", {"class": "hash"})))
    yield make("dt", "versions")
    yield make("dd", f"k2t {__version__}, torch {torch.__version__}, numpy {np.__version__}")
    yield make("dt", "machine")
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    yield make("dd", system)


def _sha256(path: Path) -> str:
    """Return the hash of a file, of a checkpoint's index, or words that a folder has none."""
    file = with_index(path)
    if file.is_dir():
        return "not made of a folder"
    return hash_file(file) if file == path else f"{hash_file(file)} ({escape_controls(file.name)})"


def _footer() -> str:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return f"Made by k2t {__version__} on {now}."


# ---- the sections --------------------------------------------------------------------------------


def _sections(report: ParityReport, weights: Sequence[MapRow]) -> Iterable[Element]:
    yield make_section("Outputs", report.make_outputs_table())
    if report.layers:
        how = "Each layer alone, on the reference's own input, in float64."
        yield make_section("Layers", make("p", how), _layer_table(report.layers), _scale())
    drawn = [layer for layer in report.layers if layer.maps]
    if drawn:
        title = "Recurrent layers: errors by step and unit"
        yield make_section(title, *_legend(), *map(_pictures, drawn))
    if weights:
        table = make_table(_WEIGHTS, map(_weight_cells, weights))
        yield make_section("From Keras to torch", table)
    if report.notes:
        notes = (make("li", printable(note, len(note) * 4)) for note in report.notes)
        yield make_section("Notes", group("ul", "", notes))


def _weight_cells(row: MapRow) -> tuple[str, ...]:
    shape = "" if row.keras_shape is None else format_shape(row.keras_shape)
    torch_shape = format_shape(row.torch_shape)
    cells = (row.keras or "-", shape, row.torch, torch_shape, f"{_count(row):,}", row.done)
    return tuple(map(printable, cells))


def _count(row: MapRow) -> int:
    return int(np.prod(row.torch_shape))


def _layer_table(layers: Sequence[LayerParity]) -> Element:
    """Return a table with the error of each layer as a bar on a logarithmic scale."""
    return make_table(_LAYERS, map(_layer_cells, layers))


def _layer_cells(layer: LayerParity) -> tuple[str | Element, ...]:
    kind = "ok" if layer.ok else "wrong"
    width = f"width:{heatmap.position(layer.max_abs_error):.0f}%"
    bar = make("div", "", {"class": f"bar {kind}", "style": width})
    track = group("div", "track", (bar, _limit()))
    judged = make_cell(layer.describe(), "" if layer.ok else "bad")
    error = f"{layer.max_abs_error:.1e}"
    return printable(layer.path), error, group("td", "scale", [track]), judged


def _limit() -> Element:
    """Return the mark on the error scale where errors begin to count."""
    at = heatmap.position(10**heatmap.EDGE)
    return make("div", "", {"class": "limit", "style": f"left:{at:.0f}%"})


def _scale() -> Element:
    text = (
        f"Bars: logarithmic, from 1e{heatmap.LOW:.0f} to 1e+{heatmap.HIGH:.0f}; "
        f"the line is at 1e{heatmap.EDGE:.0f}, where errors begin to count."
    )
    return make("p", text, {"class": "small"})


# ---- pictures of recurrent layers ----------------------------------------------------------------

# What a picture shows, and what that means.
_PATTERNS = (
    ("all red, in both", "a wrong weight, gate or activation"),
    ("in sequence a band that is its own mirror image", "a reversed direction"),
    ("in sequence the columns of masked steps", "steps that should be masked and are not"),
    ("in sequence growing from step to step", "rounding errors that the layer amplifies: no fault"),
)
_RANGES_SHOWN = 12  # ranges of masked steps that are named below a picture


def _legend() -> Iterable[Element]:
    yield make(
        "p",
        "Each picture shows the row with the largest error: steps to the right, units downwards. "
        "In sequence: over all steps. Each step alone: from the state of the reference before it.",
    )
    colours = {"src": heatmap.draw(heatmap.every_error()), "alt": "colours from blue to red"}
    marks = (heatmap.LOW, heatmap.EDGE, -3.0, -1.0, heatmap.HIGH)
    ticks = group("div", "marks", map(_mark, marks))
    named = ("blue: rounding errors", "yellow to red: errors", "grey: not judged")
    meaning = group("div", "ticks", (make("span", text) for text in named))
    colour = f"border-left: 1rem solid rgb{heatmap.MASKED}"
    masked = make("p", "masked steps, which do not count", {"class": "small key", "style": colour})
    yield group("div", "legend", (make("img", attributes=colours), ticks, meaning, masked))
    rows = (group("div", "", (make("dt", seen), make("dd", meant))) for seen, meant in _PATTERNS)
    yield group("dl", "patterns", rows)


def _mark(exponent: float) -> Element:
    at = heatmap.position(10**exponent)
    return make("span", f"1e{exponent:+.0f}", {"style": f"left:{at:.0f}%"})


def _pictures(layer: LayerParity) -> Element:
    figures = group("div", "maps", map(_figure, layer.maps))
    return group("div", "layer", (make("h3", printable(layer.path)), figures))


def _figure(error_map: ErrorMap) -> Element:
    steps, units = error_map.errors.shape
    address = heatmap.draw(error_map.errors, error_map.masked)
    picture = {"src": address, "alt": f"errors of {error_map.name}"}
    masked = f", masked: {_ranges(error_map.masked)}" if error_map.masked else ""
    parts = (
        make("figcaption", error_map.name),
        make("span", f"{units} units", {"class": "down"}),
        make("img", attributes=picture),
        make("span", f"{steps} steps of row {error_map.row}{masked}", {"class": "right"}),
    )
    return group("figure", "", parts)


def _ranges(steps: Sequence[int]) -> str:
    """Format ascending numbers as ranges, ``3, 7-10``; of many ranges only the first."""
    ranges: list[list[int]] = []
    for step in steps:
        if ranges and ranges[-1][-1] == step - 1:
            ranges[-1][1:] = [step]
        else:
            ranges.append([step])
    shown = ", ".join("-".join(map(str, pair)) for pair in ranges[:_RANGES_SHOWN])
    return shown + (", ..." if len(ranges) > _RANGES_SHOWN else "")
