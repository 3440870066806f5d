"""Measure the tasks of a benchmark, print them, and write their rows after every case."""

from __future__ import annotations

import json
import re
import statistics
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from inspect import cleandoc
from pathlib import Path
from typing import Any

from benchmarks.convert import processor
from benchmarks.floor import floor_ms, measure_peaks
from benchmarks.tasks import TASKS, Task, add_options
from keras2torch_birnn.bench import measure, report
from keras2torch_birnn.bench.case import Case, Model, Stack
from keras2torch_birnn.bench.contenders import NO_PEERS, OURS

RESULTS = Path(__file__).parent / "results"
# Two rows with these alike are of one case: the later replaces the earlier.
SAME = ("case", "device", "threads", "part")


def main(name: str, arguments: Sequence[str]) -> None:
    """Run a benchmark."""
    make = TASKS[name]
    options = _parse(name, cleandoc(make.__doc__ or ""), arguments)
    if options.of_processor:
        head = facts_of(options.threads[0], options.rounds)
        options.json = RESULTS / name / f"{name_file(head)}.json"
    wanted = [set(words.split()) for words in options.cases or [""]]
    tasks = (t for t in make(options) if any(some <= {*t.case.label.split()} for some in wanted))
    measure_all(tasks, options)


def _parse(name: str, help_text: str, arguments: Sequence[str]) -> Namespace:
    parser = ArgumentParser(
        f"python -m benchmarks {name}",
        description=help_text,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cases", nargs="+", metavar="WORDS", help="those with all words of one: 'lstm mul masked'"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders")
    parser.add_argument("--threads", type=int, nargs="+", default=[2], help="one number or several")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="results; rows of other cases in it stay")
    parser.add_argument(
        "--of-processor",
        action="store_true",
        help="results to the file of this processor in benchmarks/results/NAME",
    )
    add_options(parser)
    return parser.parse_args(arguments)


def measure_all(tasks: Iterable[Task], options: Namespace) -> None:
    """Measure tasks on every number of threads."""
    peaks: dict[int, dict[str, float]] = {}
    ratios: list[float] = []
    head = facts_of(options.threads[0], options.rounds)
    print(", ".join(f"{key} {value}" for key, value in head.items()))
    found = False
    for task in tasks:
        names = [one for one in task.contenders if not options.only or one in options.only]
        for threads in options.threads if names else ():
            found = True
            head = facts_of(threads, options.rounds)
            about = dict(task.about)
            if task.floor and isinstance(task.case, Stack):
                if threads not in peaks:
                    peaks[threads] = measure_peaks(threads)
                    print(f"{threads} threads, per second: {peaks[threads]}")
                about["floor_ms"] = floor_ms(task.case, peaks[threads])
                about["peaks_per_second"] = peaks[threads]
            row = measure.measure(
                task.case,
                device=options.device,
                threads=threads,
                rounds=options.rounds,
                contenders=names,
                table=task.table,
                exactly=task.exactly,
                memory=task.memory,
            )
            ratios += _show(row, threads, about)
            if options.json:
                write(options.json, head, replace(row, case=without_folders(task.case)), about)
    if not found:
        sys.exit("no case and contender has these names")
    if ratios:
        middle, largest = statistics.median(ratios), max(ratios)
        print(f"k2t / best other: median {middle:.2f}, largest {largest:.2f}")


def facts_of(threads: int, rounds: int) -> dict[str, Any]:
    """Return machine and settings, for the head of results."""
    return {**measure.facts(threads, rounds), "processor": processor()}


def name_file(head: Mapping[str, Any]) -> str:
    """Name the file of a processor's results: with its instructions, as clouds hide the model."""
    return "-".join(
        re.findall(r"[a-z0-9]+", f"{head['processor']} {head['native_kernel']}".lower())
    )


def _show(row: measure.Row, threads: int, about: Mapping[str, Any]) -> list[float]:
    """Print a row as ``k2t bench`` does; return the ratio to the best peer, if there is one."""
    medians = {t.contender: t.median_ms for t in _timed(row)}
    layers = f", {row.case.layers} layers" if isinstance(row.case, Stack) else ""
    print(f"{row.case.label}{layers}, {row.device}, {threads} threads")
    if OURS in medians and "floor_ms" in about:
        print(f"    {medians[OURS] / about['floor_ms']:.2f} of the floor")
    for cells, timing in zip(report.table(row), _timed(row), strict=True):
        memory = "" if timing.above_mb is None else f"{timing.above_mb:8.2f} MB"
        print("    {:28} {:>9} {:>9} {:>9} {:>7} {:>6}".format(*cells), memory)
    for note in report.footnotes(row):
        print(f"    {note}", flush=True)
    peers = {name for name in medians if not name.startswith(OURS)} - {*NO_PEERS}
    there = [ratio for name in peers if (ratio := row.ratio(OURS, name)) is not None]
    return [max(there)] if there else []


def _timed(row: measure.Row) -> list[measure.Timing]:
    return [timing for timing in row.timings if not timing.absent]


def without_folders(case: Case) -> Case:
    """Name the files of a model as they are named anywhere."""
    if not isinstance(case, Model):
        return case
    return replace(case, path=Path(case.path).name, config=case.config and Path(case.config).name)


def write(file: Path, head: Mapping[str, Any], row: measure.Row, about: Mapping[str, Any]) -> None:
    """Add a row to a file of results."""
    old = json.loads(file.read_text("utf-8"))["rows"] if file.exists() else []
    of_row = {key: head[key] for key in ("threads", "rounds", "load_average")}
    (data,) = report.as_data({}, [row])["rows"]
    new = json.loads(json.dumps({**data, **of_row, **about}))
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [one for one in old if any(one.get(key) != new.get(key) for key in SAME)]
    written = file.with_name(f"{file.name}.new")
    text = json.dumps({**head, "rows": [*rows, new]}, indent=1)
    written.write_text(f"{text}\n", encoding="utf-8")
    written.replace(file)
