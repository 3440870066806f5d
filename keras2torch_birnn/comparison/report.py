"""Results of ``verify``, as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from keras2torch_birnn.comparison.html import Table, Verdict, show_in_cell
from keras2torch_birnn.errors import printable
from keras2torch_birnn.spec import Array

_OUTPUTS = ("device", "against", "inputs", "max abs", "relative", "rounding", "verdict")
_LAYERS = ("layer (float64, against the reference)", "max abs", "max rel", "")


@dataclass(frozen=True)
class ErrorMap:
    """Errors of a recurrent layer by step and unit (T, H), of the row with the largest one.

    NaN: not judged. ``name``: of the output or half, and how it was computed. ``masked``: the
    steps of that row that a mask leaves out.
    """

    name: str
    errors: Array
    row: int
    masked: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerParity:
    """Comparison of one layer with the reference, in float64 and on the reference's own input.

    ``worst_index``: index of the largest error in the output; ``where``: the same in words if the
    layer is wrong. ``judged``: the method, in words. ``maps``: of a recurrent layer that is
    wrong, for pictures; they are not in ``to_dict``.
    """

    path: str
    max_abs_error: float
    max_rel_error: float
    worst_index: tuple[int, ...]
    ok: bool
    where: str = ""
    judged: str = "whole"
    maps: tuple[ErrorMap, ...] = field(default=(), compare=False, repr=False)

    def cells(self) -> tuple[str, ...]:
        """Return the texts of a row of a table: how it was judged only if not on the whole."""
        judged = "" if self.judged.startswith("whole") else self.judged
        told = judged if self.ok else f"WRONG: {self.where}"
        errors = f"{self.max_abs_error:.1e}", f"{self.max_rel_error:.1e}"
        return printable(self.path), *errors, printable(told, 400)


@dataclass(frozen=True)
class Comparison:
    """Comparison of the model's outputs on one device with one baseline.

    ``yardstick_error``: rounding error of the baseline's own arithmetic, 0 if unknown.
    ``counts``: whether the verdict depends on this comparison. ``inputs``: name of the inputs.
    ``judged``: whether the baseline is exact enough on these inputs; if not, ``ok`` is false.
    ``failure``: why the model could not be computed.
    """

    device: str
    against: str
    max_abs_error: float
    max_rel_error: float
    yardstick_error: float
    ok: bool
    counts: bool = True
    inputs: str = ""
    judged: bool = True
    failure: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return the texts of a row of a table."""
        verdict = "equal" if self.ok else "NOT EQUAL" if self.judged else "not judged"
        return (
            self.device,
            self.against,
            self.inputs,
            f"{self.max_abs_error:.1e}",
            f"{self.max_rel_error:.1e}",
            f"{self.yardstick_error:.1e}",
            printable(self.failure or verdict, 400) if self.counts else "for information",
        )


@dataclass(frozen=True)
class ParityReport:
    """Verdict of ``verify``, with every comparison behind it.

    Attributes:
        ok: Whether all that was compared is equal within the tolerance.
        max_abs_error: Largest absolute error of the comparisons that count.
        max_rel_error: Largest relative error of the comparisons that count.
        comparisons: All comparisons of the model's outputs.
        layers: A row for each layer, with its error.
        first_divergence: Path of the first wrong layer, or None.
        notes: What a reader should know without being an error.
        inputs: Name of the inputs that decided about the whole model; "" if none could, and then
            ``judged`` and ``ok`` are false.
        judged: Whether any inputs could decide.
        without_keras: Why live Keras was not asked, or did not answer, if the reason is what the
            file names.
    """

    ok: bool
    max_abs_error: float
    max_rel_error: float
    comparisons: tuple[Comparison, ...]
    layers: tuple[LayerParity, ...]
    first_divergence: str | None
    notes: tuple[str, ...] = field(default=())
    inputs: str = ""
    judged: bool = True
    without_keras: str = ""

    @property
    def verdict(self) -> Verdict:
        """The verdict in a word and in a sentence."""
        wrong = next((layer for layer in self.layers if not layer.ok), None)
        if wrong is not None:
            place = f"{printable(wrong.path)}: {printable(wrong.where, 400)}"
            return Verdict("wrong", "NOT EQUAL", f"First divergence: {place}.")
        largest = f"The largest error of an output is {self.max_abs_error:.1e}."
        if self.ok and self.without_keras:
            told = f"{largest} Not compared with Keras: {self.without_keras}."
            return Verdict("ok", "EQUAL", told)
        if self.ok:
            return Verdict("ok", "EQUAL", largest)
        if self.judged:
            return Verdict("wrong", "NOT EQUAL", largest)
        why = self.without_keras or "no input was found on which rounding errors are small enough"
        return Verdict("unknown", "NOT JUDGED", f"No output could be judged: {why}.")

    def tables(self) -> tuple[Table, ...]:
        """Return the comparisons of outputs, and those of layers if there are any."""
        outputs = Table("Outputs", _OUTPUTS, tuple(c.cells() for c in self.comparisons), (3, 4, 5))
        layers = Table("Layers", _LAYERS, tuple(one.cells() for one in self.layers), (1, 2))
        return (outputs, layers) if self.layers else (outputs,)

    def _repr_html_(self) -> str:
        """Show the verdict and the tables in a notebook."""
        return show_in_cell(self.verdict, self.tables())

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        layers = tuple(replace(layer, maps=()) for layer in self.layers)
        found = asdict(replace(self, layers=layers))
        for layer in found["layers"]:
            del layer["maps"]
        return found


def report_of(
    comparisons: Sequence[Comparison],
    layers: Sequence[LayerParity],
    notes: Iterable[str],
    *,
    without_keras: str = "",
    contradicted: bool = False,
) -> ParityReport:
    """Make the report: ok if something was judged, and all judged results that count are equal.

    contradicted: Keras does not know what the file names, so that nothing can be judged.
    """
    counting = [c for c in comparisons if c.counts and c.judged and not contradicted]
    wrong = next((layer.path for layer in layers if not layer.ok), None)
    return ParityReport(
        ok=bool(counting) and all(c.ok for c in counting) and wrong is None,
        max_abs_error=max((c.max_abs_error for c in counting), default=0.0),
        max_rel_error=max((c.max_rel_error for c in counting), default=0.0),
        comparisons=tuple(comparisons),
        layers=tuple(layers),
        first_divergence=wrong,
        notes=tuple(notes),
        inputs=counting[-1].inputs if counting else "",
        judged=bool(counting),
        without_keras=without_keras,
    )
