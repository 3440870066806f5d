"""Reports of timings: table, JSON, plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras2torch_birnn import __version__
from keras2torch_birnn.cli.bench.contenders import OURS
from keras2torch_birnn.cli.bench.measure import Row, Timing
from keras2torch_birnn.comparison.html import Table
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.suggestions import advise_extra

DRAWN_BY = "k2t bench"  # the mark of a plot in its file
# Slowest round over the fastest, from which on the machine seems busy.
UNSTEADY = 3
HEAD = ("ms of one call", "median", "fastest", "slowest", "k2t takes", "error")


def make_table(row: Row) -> Table:
    """Return the medians, their spread, what k2t takes of each, and the largest error."""
    cells = tuple(_cells(row, timing) for timing in row.timings if timing.times_ms)
    return Table(row.case.label, HEAD, cells, numbers=tuple(range(1, len(HEAD))))


def _cells(row: Row, timing: Timing) -> tuple[str, ...]:
    ratio = row.ratio(OURS, timing.contender)
    shown = "" if math.isnan(ratio) or timing.contender == OURS else f"{ratio:.2g}x"
    spread = (timing.median_ms, min(timing.times_ms), max(timing.times_ms))
    return (timing.contender, *(f"{ms:.2f}" for ms in spread), shown, f"{timing.error:.0e}")


def footnotes(row: Row) -> list[str]:
    """Return what each contender ran on, and why others are absent."""
    ran: dict[str, list[str]] = {}
    for timing in row.timings:
        text = f"not measured, {timing.absent}" if timing.absent else timing.runs
        ran.setdefault(text, []).append(timing.contender)
    return [f"{text}: {', '.join(names)}" for text, names in ran.items()]


def as_data(row: Row) -> dict[str, Any]:
    """Return a row as data for JSON."""
    timings = [
        {
            **{key: value for key, value in vars(timing).items() if key != "error"},
            "error": timing.error if math.isfinite(timing.error) else None,
            "median_ms": timing.median_ms if timing.times_ms else None,
        }
        for timing in row.timings
    ]
    case = row.case
    return {"case": case.label, "batch": case.batch, "steps": case.steps, "timings": timings}


def find_disturbance(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return why the figures may mean little: a busy machine; or nothing."""
    load, processors = facts["load_average"], facts["processors"]
    if load is not None and processors and load > processors:
        return f"the machine is busy (load {load:.1f} on {processors} processors): measure again"
    times = [timing.times_ms for row in rows for timing in row.timings if timing.times_ms]
    if any(max(one) > UNSTEADY * min(one) for one in times):
        return f"some rounds took over {UNSTEADY} times as long as others: is the machine busy?"
    return ""


def check_plot(file: Path) -> Any:
    """Return matplotlib's class of figures: ask, before anything is measured, that it is there.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        advice = advise_extra("bench")
        raise UsageError(f"--plot {file.name} needs matplotlib", advice) from None
    return Figure


def plot(facts: Mapping[str, Any], rows: Sequence[Row], place: Path, file: Path) -> None:
    """Draw bars of the medians from zero, a group for each case, in the format of ``file``."""
    form = file.suffix[1:].lower()
    mark = {"svg": "Creator", "png": "Software"}[form]
    figure = draw(facts, rows, check_plot(file))
    figure.savefig(place, format=form, bbox_inches="tight", dpi=150, metadata={mark: DRAWN_BY})


def draw(facts: Mapping[str, Any], rows: Sequence[Row], figure_class: Any) -> Any:
    """Return the figure of ``plot``; it says so where the machine was busy."""
    shown = [[timing for timing in row.timings if timing.times_ms] for row in rows]
    names = list(dict.fromkeys(timing.contender for timings in shown for timing in timings))
    heights = [max(1, len(timings)) for timings in shown]
    figure = figure_class(figsize=(9, 1.6 + 0.3 * sum(heights) + 0.5 * len(rows)))
    # Each case has an axis of its own: lengths are compared within a case.
    grid = figure.subplots(
        len(rows), squeeze=False, gridspec_kw={"height_ratios": heights, "hspace": 0.6}
    )
    for axes, row, timings in zip(grid[:, 0], rows, shown, strict=True):
        for at, timing in enumerate(timings):
            colour, ms = f"C{names.index(timing.contender)}", timing.median_ms
            axes.barh(at, ms, color=colour, height=0.8)
            axes.text(ms, at, f" {ms:.2f}", va="center", fontsize=7)
        axes.set_yticks(range(len(timings)), [t.contender for t in timings], fontsize=7)
        axes.set_title(row.case.label, fontsize=8, loc="left")
        # room for the number behind the longest bar
        axes.set_xlim(0, 1.12 * max((t.median_ms for t in timings), default=1.0))
        axes.invert_yaxis()
    grid[-1, 0].set_xlabel("milliseconds for one call, median (shorter is better)")
    ran = dict.fromkeys(timing.runs for timings in shown for timing in timings)
    figure.suptitle(
        f"k2t {__version__}, {facts['machine']}, {facts['threads']} threads of "
        f"{facts['processors']} processors, {facts['native_kernel']}, Python {facts['python']}\n"
        + ", ".join(ran),
        fontsize=8,
    )
    warning = find_disturbance(facts, rows)
    figure.text(0.5, -0.02, warning, color="C3", fontsize=8, ha="center", va="top")
    return figure
