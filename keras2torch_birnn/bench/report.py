"""Reports of timings: table, JSON, plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from keras2torch_birnn import __version__
from keras2torch_birnn.bench import DRAWN_BY
from keras2torch_birnn.bench.contenders import OURS
from keras2torch_birnn.bench.measure import Row, Timing
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.extras import advise_extra

# Slowest round over the fastest, from which on the machine seems busy.
UNSTEADY = 3


HEAD = ("ms of one call", "median", "fastest", "slowest", "k2t takes", "error")


def table(row: Row) -> list[tuple[str, ...]]:
    """Return the cells below ``HEAD``: medians, spread, ratio to k2t, error."""
    return [_cells(row, timing) for timing in row.timings if not timing.absent]


def footnotes(row: Row) -> list[str]:
    """Return what each contender ran on, and why others are absent."""
    ran = _by_reason((t.contender, t.runs) for t in row.timings if not t.absent)
    absent = _by_reason((t.contender, t.absent) for t in row.timings if t.absent)
    return [
        *(f"{version}: {'; '.join(names)}" for version, names in ran.items()),
        *(f"not measured, {reason}: {'; '.join(names)}" for reason, names in absent.items()),
    ]


def _by_reason(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in pairs:
        found.setdefault(reason, []).append(name)
    return found


def _cells(row: Row, timing: Timing) -> tuple[str, ...]:
    times = timing.times_ms
    ratio = row.ratio(OURS, timing.contender)
    shown = "" if ratio is None or timing.contender == OURS else _ratio_text(ratio)
    spread = (timing.median_ms, min(times), max(times))
    return (_name(timing), *(f"{ms:.2f}" for ms in spread), shown, f"{timing.error:.0e}")


def _name(timing: Timing) -> str:
    """Return the contender, with how its recurrent layers ran."""
    return f"{timing.contender} ({timing.way})" if timing.way else timing.contender


def _ratio_text(ratio: float) -> str:
    """Write a ratio with two significant figures: 0.0031x, 0.85x, 12x."""
    return f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.2g}x"


def as_data(facts: Mapping[str, Any], rows: Iterable[Row]) -> dict[str, Any]:
    """Return all measurements as data for JSON."""
    found: list[dict[str, Any]] = [
        {
            "case": {"kind": type(row.case).__name__, **asdict(row.case)},
            "device": row.device,
            "timings": [
                # JSON has no NaN.
                {**asdict(t), **_errors(t), "median_ms": _median(t)}
                for t in row.timings
            ],
        }
        for row in rows
    ]
    return {**facts, "rows": found}


def find_disturbance(facts: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """Return why the figures may mean little: a busy machine; or nothing."""
    load, processors = facts["load_average"], facts["processors"]
    if load is not None and processors and load > processors:
        return f"the machine is busy (load {load:.1f} on {processors} processors): measure again"
    times = [t.times_ms for row in rows for t in row.timings if t.times_ms]
    if any(max(one) > UNSTEADY * min(one) for one in times):
        return f"some rounds took over {UNSTEADY} times as long as others: is the machine busy?"
    return ""


def _errors(timing: Timing) -> dict[str, float | None]:
    both = {"error": timing.error, "relative_error": timing.relative_error}
    return {key: value if math.isfinite(value) else None for key, value in both.items()}


def _median(timing: Timing) -> float | None:
    return timing.median_ms if timing.times_ms else None


def check_plot(file: Path) -> None:
    """Check, before anything is measured, that a picture can be drawn.

    Raises:
        UsageError: matplotlib is not installed, or the suffix is none it can write.
    """
    if file.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot {file.name}: .png or .svg is expected")
    _figure_class()


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("--plot needs matplotlib", advise_extra("bench")) from None
    return Figure


def plot(facts: Mapping[str, Any], rows: Sequence[Row], file: Path, form: str) -> None:
    """Draw bars of the medians from zero, one group per case; form: "png" or "svg"."""
    mark = {"svg": "Creator", "png": "Software"}[form]
    draw(facts, rows).savefig(
        file, format=form, bbox_inches="tight", dpi=150, metadata={mark: DRAWN_BY}
    )


def draw(facts: Mapping[str, Any], rows: Sequence[Row]) -> Any:
    """Return the figure of ``plot``; it says so where the machine was busy."""
    names = list(dict.fromkeys(t.contender for row in rows for t in row.timings if t.times_ms))
    heights = [max(1, _present(row)) for row in rows]
    figure = _figure_class()(figsize=(9, 1.6 + 0.3 * sum(heights) + 0.5 * len(rows)))
    # Each case has an axis of its own: lengths are compared within a case.
    grid = figure.subplots(
        len(rows), squeeze=False, gridspec_kw={"height_ratios": heights, "hspace": 0.6}
    )
    for axes, row in zip(grid[:, 0], rows, strict=True):
        present = [t for t in row.timings if t.times_ms]
        for at, timing in enumerate(present):
            colour = f"C{names.index(timing.contender)}"
            axes.barh(at, timing.median_ms, color=colour, height=0.8)
            axes.text(timing.median_ms, at, f" {timing.median_ms:.2f}", va="center", fontsize=7)
        axes.set_yticks(range(len(present)), [_name(t) for t in present], fontsize=7)
        axes.set_title(f"{row.case.label}, {row.device}", fontsize=8, loc="left")
        longest = max((t.median_ms for t in present), default=1.0)
        axes.set_xlim(0, 1.12 * longest)  # room for the number behind the longest bar
        axes.invert_yaxis()
    grid[-1, 0].set_xlabel("milliseconds for one call, median (shorter is better)")
    figure.suptitle(_title(facts, rows), fontsize=8)
    warning = find_disturbance(facts, rows)
    figure.text(0.5, -0.02, warning, color="C3", fontsize=8, ha="center", va="top")
    return figure


def _title(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return machine and threads in one line, and in another the versions of what ran."""
    ran = dict.fromkeys(t.runs for row in rows for t in row.timings if t.times_ms)
    return (
        f"k2t {__version__}, {facts['machine']}, {facts['threads']} threads of "
        f"{facts['processors']} processors, {facts['native_kernel']}, Python {facts['python']}\n"
        + ", ".join(filter(None, ran))
    )


def _present(row: Row) -> int:
    return sum(bool(t.times_ms) for t in row.timings)
