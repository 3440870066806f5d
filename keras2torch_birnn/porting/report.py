"""Results of ``compare``, as data and in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from keras2torch_birnn.comparison.html import Table, Verdict, show_in_cell
from keras2torch_birnn.errors import printable
from keras2torch_birnn.spec import Array, LayerSpec

_FINDINGS = ("layer", "what the port does", "where its output differs")
_TENSORS = ("tensor", "of layer", "what is wrong")


@dataclass(frozen=True)
class PortFinding:
    """A mistake of a port, or a layer that differs for an unknown reason.

    ``layer``: path of the Keras layer; ``kind``: a word for programs, "unexplained" if no known
    mistake gives the port's numbers; ``words``: what the port does; ``where``: where the layer's
    output differs first; ``tensors``: the port's tensors that are wrong, in words; ``rows``: the
    rows on which it shows, "" for all.
    """

    layer: str
    kind: str
    words: str
    where: str = ""
    tensors: tuple[str, ...] = ()
    rows: str = ""

    def lines(self) -> Iterator[str]:
        """Yield the lines that tell it to a person."""
        rows = f" ({self.rows})" if self.rows else ""
        yield f"{printable(self.layer)}: {self.words}{rows}"
        for tensor in self.tensors:
            yield f"    {tensor}"
        if self.where:
            yield f"    its output differs {self.where}"


@dataclass(frozen=True)
class PortTensor:
    """A tensor of a port and the Keras layer whose right tensor it is compared with.

    ``layer``: path, with the direction, or "" if it was matched to none; ``difference``: in words,
    "" if it holds the right values.
    """

    name: str
    layer: str
    difference: str


@dataclass(frozen=True)
class PortReport:
    """Verdict of ``compare``.

    Attributes:
        ok: Whether the port's outputs are Keras' on all inputs that were tried.
        findings: What is wrong, in the order of the layers.
        tensors: How the port's weights were matched.
        inputs: Names of the inputs that were tried.
        max_abs_error: Largest absolute error of the port's outputs, at steps that count.
        notes: What a reader should know without being an error.
    """

    ok: bool
    findings: tuple[PortFinding, ...]
    tensors: tuple[PortTensor, ...]
    inputs: tuple[str, ...]
    max_abs_error: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"schema": 1, **asdict(self)}

    def _repr_html_(self) -> str:
        """Show the verdict and the tables in a notebook."""
        words, _, sentence = [*self.lines()][-1].partition(" ")
        verdict = Verdict("ok" if self.ok else "wrong", words.strip(":").upper(), sentence)
        findings = tuple(
            (printable(one.layer), f"{one.words} {one.rows}", one.where) for one in self.findings
        )
        wrong = tuple(
            (printable(one.name), printable(one.layer), one.difference)
            for one in self.tensors
            if one.difference
        )
        tables = (Table("Findings", _FINDINGS, findings), Table("Tensors", _TENSORS, wrong))
        return show_in_cell(verdict, () if self.ok else tables)

    def lines(self) -> Iterator[str]:
        """Yield the lines that tell it to a person; the last one is the verdict."""
        for finding in self.findings:
            yield from finding.lines()
        tried = f" on {', '.join(self.inputs)}" if self.inputs else ""
        if self.ok:
            yield f"equal{tried} (max abs error {self.max_abs_error:.1e})"
            return
        if {one.kind for one in self.findings} == {"padding side"}:  # as packing does it
            apart = dict.fromkeys(name for one in self.findings for name in one.rows.split(", "))
            equal = ", ".join(name for name in self.inputs if name not in apart)
            yield f"DIFFERENT on {', '.join(apart)} alone, equal on {equal}"
            return
        count = len(self.findings)
        yield f"DIFFERENT: {count} {'place' if count == 1 else 'places'}{tried}"


def locate_first(right: Array, actual: Array, layer: LayerSpec) -> str:
    """Say where two outputs (B, T, ...) or (B, ...) of a layer differ first; "" if nowhere."""
    if right.shape != actual.shape:
        return f"in shape: {actual.shape}, Keras has {right.shape}"
    limit = 1e-6 * (1 + float(np.abs(right).max(initial=0.0)))
    new = np.isnan(actual) & ~np.isnan(right)
    apart = new if new.any() else np.abs(right - actual) > limit
    if not apart.any():
        return ""
    words, place = ["first"], tuple(int(i) for i in np.argwhere(apart)[0])
    if right.ndim == 3:
        step = int(apart.any(axis=(0, 2)).argmax())
        row, unit = (int(i) for i in np.argwhere(apart[:, step])[0])
        words, place = [f"first at step {step}"], (row, step, unit)
    words.append(f"row {place[0]}")
    if right.ndim in (2, 3):
        words.append(_describe_unit(place[-1], right.shape[-1], layer))
    if np.isnan(actual[place]):
        words.append("where it is NaN")
    return ", ".join(words)


def _describe_unit(unit: int, width: int, layer: LayerSpec) -> str:
    if layer.class_name == "Bidirectional" and layer.config["merge_mode"] == "concat":
        half = width // 2
        return f"{'backward' if unit >= half else 'forward'} half, unit {unit % half}"
    return f"unit {unit}"
