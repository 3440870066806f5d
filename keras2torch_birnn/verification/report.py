"""What ``verify`` found, as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerParity:
    """One layer's output against the reference, both in float64, on the reference's own input.

    ``worst_index`` says where in the output the largest error stands, ``where`` says it in words
    if the layer is wrong. ``judged``: how it was judged, in words.
    """

    path: str
    max_abs_error: float
    max_rel_error: float
    worst_index: tuple[int, ...]
    ok: bool
    where: str = ""
    judged: str = "whole"


@dataclass(frozen=True)
class Comparison:
    """The model's outputs on one device against one yardstick.

    ``yardstick_error``: how far the yardstick's own arithmetic is off from exact; 0 if unknown.
    ``counts``: whether the verdict depends on it. ``inputs``: what the model was run on.
    ``judged``: whether the yardstick's own arithmetic is exact enough on these inputs to say
    anything; where it is not, ``ok`` is false. ``failure``: why the model could not be computed.
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


@dataclass(frozen=True)
class ParityReport:
    """What ``verify`` found.

    ``max_abs_error`` is the largest error of the comparisons that count. ``first_divergence`` is
    the path of the first layer that is wrong, or None. ``inputs``: what the verdict on the whole
    model rests on, "" if it could be judged on no input; ``judged`` is false then, and so is
    ``ok``.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def report_of(
    comparisons: Sequence[Comparison], layers: Sequence[LayerParity], notes: Iterable[str]
) -> ParityReport:
    """The verdict: something was judged, and all that was judged and counts is equal."""
    counting = [c for c in comparisons if c.counts and c.judged]
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
    )
