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
from keras2torch_birnn.comparison.report import Comparison, LayerParity, ParityReport
from keras2torch_birnn.errors import escape_controls, printable
from keras2torch_birnn.porting.weight_map import MapRow
from keras2torch_birnn.readers.files.sha256 import hash_file
from keras2torch_birnn.reporting import heatmap
from keras2torch_birnn.reporting.kind import MARK, REPORT
from keras2torch_birnn.reporting.style import STYLE
from keras2torch_birnn.saving.atomic import write_atomically
from keras2torch_birnn.spec import format_shape

Element = ElementTree.Element
_COMPARISON_HEAD = (
    "device",
    "against",
    "on",
    "largest error",
    "relative",
    "float32 rounding",
    "verdict",
)
_WEIGHT_HEAD = ("Keras weight", "shape", "torch tensor", "shape", "values", "what was done")


def write_report(
    report: ParityReport, path: Path, *, model: Path, out: Path | None, weights: Sequence[MapRow]
) -> None:
    """Write the result of ``verify`` as one HTML file. A report that is there is replaced.

    weights: the table of ``k2t map``; empty if OUT alone was verified.

    Raises:
        OutputError: it cannot be written, or another file must not be replaced.
    """
    text = make_page(report, model=model, out=out, weights=weights)
    write_atomically(path, lambda file: _write(file, text), REPORT, overwrite=True, size=len(text))


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def make_page(
    report: ParityReport, *, model: Path, out: Path | None, weights: Sequence[MapRow]
) -> str:
    """Return the page as text."""
    name = escape_controls((out or model).name)
    body = _make("body")
    body.append(_make("h1", f"Is {name} right?"))
    body.append(_make("p", _verdict(report, model, out), {"class": _class_of(report)}))
    body.extend(_sections(report, model, out, weights))
    page = _make("html", attributes={"lang": "en"})
    page.append(_head(name))
    page.append(body)
    return "<!DOCTYPE html>\n" + ElementTree.tostring(page, encoding="unicode", method="html")


def _head(name: str) -> Element:
    head = _make("head")
    head.append(_make("meta", attributes={"charset": "utf-8"}))
    head.append(_make("meta", attributes={"name": "generator", "content": MARK}))
    wide = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    head.append(_make("meta", attributes=wide))
    head.append(_make("title", f"k2t verify {name}"))
    head.append(_make("style", STYLE))
    return head


def _class_of(report: ParityReport) -> str:
    if report.ok:
        return "verdict ok"
    return "verdict wrong" if report.judged or report.first_divergence else "verdict unknown"


def _verdict(report: ParityReport, model: Path, out: Path | None) -> str:
    """Return the result in one sentence."""
    first, second = escape_controls(model.name), escape_controls((out or model).name)
    error = f"the largest error of an output is {report.max_abs_error:.1e}"
    if report.ok and out is None:
        return f"{second} computes the numbers that were stored in it: {error}."
    if report.ok:
        count = len(report.layers)
        layers = f", and all {count} layers are right in float64" if count else ""
        return f"{second} computes what {first} computes: {error}{layers}."
    wrong = next((layer for layer in report.layers if not layer.ok), None)
    if wrong is not None:
        place = f"{printable(wrong.path)}: {printable(wrong.where)}"
        return f"{second} does not compute what {first} computes. The first wrong layer is {place}."
    if report.judged:
        return f"{second} does not compute what {first} computes: {error}."
    return "No input was found on which rounding errors are small enough to judge."


def _sections(
    report: ParityReport, model: Path, out: Path | None, weights: Sequence[MapRow]
) -> Iterable[Element]:
    yield _section("Files and versions", _table(("", ""), _facts(model, out)))
    yield _section("Outputs", _table(_COMPARISON_HEAD, map(_comparison_cells, report.comparisons)))
    if report.layers:
        yield _section(
            "Layers, each on the reference's own input, in float64",
            _layer_table(report.layers),
        )
    drawn = [layer for layer in report.layers if layer.maps]
    if drawn:
        yield _heatmaps(drawn)
    if weights:
        table = _table(_WEIGHT_HEAD, map(_weight_cells, weights))
        yield _section("From Keras to torch", table)
    if report.notes:
        notes = _make("ul")
        notes.extend(_make("li", printable(note, len(note) * 4)) for note in report.notes)
        yield _section("Notes", notes)


def _facts(model: Path, out: Path | None) -> list[tuple[str, str]]:
    files = [("model", model), *([("out", out)] if out is not None else [])]
    rows = [(kind, f"{escape_controls(path)}, sha256 {_sha256(path)}") for kind, path in files]
    versions = f"torch {torch.__version__}, numpy {np.__version__}"
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return [*rows, ("versions", f"k2t {__version__}, {versions}, {machine}"), ("made", now)]


def _sha256(path: Path) -> str:
    """Return the hash of a file; of a folder words that say why there is none."""
    return "not made of a folder" if path.is_dir() else hash_file(path)


def _comparison_cells(one: Comparison) -> tuple[str, ...]:
    verdict = one.failure or ("equal" if one.ok else "NOT EQUAL" if one.judged else "not judged")
    return (
        one.device,
        one.against,
        one.inputs,
        f"{one.max_abs_error:.1e}",
        f"{one.max_rel_error:.1e}",
        f"{one.yardstick_error:.1e}",
        printable(verdict, 400) if one.counts else "for information",
    )


def _weight_cells(row: MapRow) -> tuple[str, ...]:
    values = int(np.prod(row.torch_shape))
    shape = "" if row.keras_shape is None else format_shape(row.keras_shape)
    torch_shape = format_shape(row.torch_shape)
    cells = (row.keras or "-", shape, row.torch, torch_shape, f"{values:,}", row.done)
    return tuple(map(printable, cells))


def _layer_table(layers: Sequence[LayerParity]) -> Element:
    """Return a table with the error of each layer as a bar on a logarithmic scale."""
    table = _table(("layer", "largest error", "", "judged"), ())
    for layer in layers:
        row = ElementTree.SubElement(table, "tr")
        row.append(_make("td", printable(layer.path)))
        row.append(_make("td", f"{layer.max_abs_error:.1e}", {"class": "number"}))
        cell = ElementTree.SubElement(row, "td", {"class": "scale"})
        kind = "bar ok" if layer.ok else "bar wrong"
        cell.append(_make("div", "", {"class": kind, "style": f"width:{_width(layer):.0f}%"}))
        how = layer.judged if layer.ok else f"WRONG: {layer.where}"
        row.append(_make("td", printable(how, 400)))
    return table


def _width(layer: LayerParity) -> float:
    """Return the length of a bar in percent: 0 at 1e-17, 100 at 10."""
    error = layer.max_abs_error
    exponent = np.log10(error) if 0 < error < np.inf else (heatmap.HIGH if error else -17.0)
    part = (exponent - heatmap.LOW) / (heatmap.HIGH - heatmap.LOW)
    return float(100 * min(max(part, 0.0), 1.0))


def _heatmaps(layers: Sequence[LayerParity]) -> Element:
    section = _section("Recurrent layers: errors by step and unit", _legend())
    for layer in layers:
        section.append(_make("h3", printable(layer.path)))
        row = ElementTree.SubElement(section, "div", {"class": "maps"})
        for one in layer.maps:
            figure = ElementTree.SubElement(row, "figure")
            steps, units = one.errors.shape
            picture = {"src": heatmap.draw(one.errors), "alt": f"errors of {one.name}"}
            figure.append(_make("img", attributes=picture))
            caption = f"{one.name}: {steps} steps to the right, {units} units downwards"
            figure.append(_make("figcaption", caption))
    return section


def _legend() -> Element:
    text = (
        "Blue: rounding errors, up to 1e-9. Yellow to red: errors. Grey: not judged. A wrong gate "
        "is all red, exchanged directions are a mirrored band, a wrong mask is the padded columns; "
        "errors that grow from left to right in sequence alone are rounding errors that the layer "
        "amplifies."
    )
    return _make("p", text)


def _section(title: str, content: Element) -> Element:
    section = _make("section")
    section.append(_make("h2", title))
    section.append(content)
    return section


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Element:
    table = _make("table")
    if any(head):
        first = ElementTree.SubElement(table, "tr")
        first.extend(_make("th", text) for text in head)
    for row in rows:
        line = ElementTree.SubElement(table, "tr")
        line.extend(_make("td", text) for text in row)
    return table


def _make(tag: str, text: str = "", attributes: dict[str, str] | None = None) -> Element:
    """Make an element; ``ElementTree`` escapes texts and attributes."""
    element = Element(tag, attributes or {})
    element.text = text
    return element
