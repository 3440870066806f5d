"""Tables of measured times for the documentation, each a description of its lines and columns.

They read the results that ``python -m benchmarks`` wrote to ``benchmarks/results``. A line of a
table may join several rows of them: the same case masked and not, or by one and two threads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from keras2torch_birnn.bench.contenders import COMPILED, LOOP, NO_PEERS, OURS, PLAIN

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
SHORT = {"Keras train_on_batch": "Keras", "Keras train_on_batch XLA": "Keras XLA"}
KINDS = {
    ("lstm", "sigmoid", True): "LSTM",
    ("gru", "sigmoid", True): "GRU",
    ("lstm", "hard_sigmoid_0.2", True): "LSTM, hard_sigmoid",
    ("gru", "hard_sigmoid_0.2", False): "GRU, reset before, hard_sigmoid",
}


def read_results(file: str) -> dict[str, Any]:
    """Read a file of results."""
    found: dict[str, Any] = json.loads((RESULTS / file).read_text("utf-8"))
    return found


def processor_of(results: Mapping[str, Any]) -> str:
    """Name the processor of results, and what the native kernel used of it."""
    return f"{results['processor']}, {results['native_kernel']}"


class Row:
    """One case of the results: medians of its contenders, in milliseconds."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data, self.case = data, data.get("case", {})
        self.timings = {one["contender"]: one for one in data.get("timings", ())}
        self.medians = {n: t["median_ms"] for n, t in self.timings.items() if t["median_ms"]}

    def at(self, *keys: str) -> tuple[Any, ...]:
        """Return some facts of the case."""
        return tuple(self.case[key] for key in keys)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch, steps, input and units."""
        return self.at("batch", "time", "features", "units")

    @property
    def kind(self) -> str:
        """Cell in words."""
        return KINDS[self.at("rnn", "recurrent_activation", "reset_after")]

    def best(self, names: Iterable[str]) -> str:
        """Return the fastest of these contenders that was timed; empty if none was."""
        known = [name for name in names if name in self.medians]
        return min(known, key=self.medians.__getitem__, default="")

    def best_peer(self) -> str:
        """Return the fastest of those that are neither ours nor written by hand."""
        return self.best(name for name in self.medians if name not in NO_PEERS)

    def ratio(self, to: str, ours: str = OURS, of: Row | None = None) -> str:
        """Divide a median by another, of this row or that given; empty without either."""
        others = (of or self).medians
        known = ours in self.medians and to in others
        return f"{self.medians[ours] / others[to]:.2f}" if known else ""


Line: TypeAlias = Mapping[Any, Row]
Cell: TypeAlias = Callable[[Line], str]
# Columns of a processor of this name.
Columns: TypeAlias = Callable[[str], Sequence[tuple[str, Cell]]]
NOTHING = Row({})


def text(say: Callable[[Row], str], of: Any = None) -> Cell:
    """Return a cell about one of a line's rows, by default the first."""
    return lambda line: say(next(iter(line.values())) if of is None else line.get(of, NOTHING))


def ms(name: str = OURS, form: str = "{:.3g}", *, of: Any = None) -> Cell:
    """Return a cell with the median of a contender; empty if it was not timed."""
    return text(lambda row: form.format(row.medians[name]) if name in row.medians else "", of)


def ratio(to: str = PLAIN, ours: str = OURS, *, of: Any = None) -> Cell:
    """Return a cell with the ratio of two contenders."""
    return text(lambda row: row.ratio(to, ours), of)


@dataclass(frozen=True)
class Table:
    """A table of results: headings and cells.

    files: a row that is in several is that of the last. line, variant: which rows make a line, and
    which of these each is. kept: which rows count. order: of the lines, from their first row; else
    that of the file. shown: which lines are. end: the text below, of all rows that count. words:
    the columns of words; the others are numbers.
    """

    files: Sequence[str]
    columns: Sequence[tuple[str, Cell]]
    line: Callable[[Row], Any] = id
    variant: Callable[[Row], Any] = lambda row: None
    kept: Callable[[Row], bool] = lambda row: True
    order: Callable[[Row], Any] = lambda row: 0
    shown: Callable[[Row], bool] = lambda row: True
    end: Callable[[Sequence[Row]], str] = lambda rows: ""
    words: Sequence[int] = (0, 1)

    def __call__(self) -> str:
        """Write the table."""
        rows = [
            Row({**results, **data})
            for results in map(read_results, self.files)
            for data in results["rows"]
        ]
        lines: dict[Any, dict[Any, Row]] = {}
        for row in filter(self.kept, rows):
            lines.setdefault(self.line(row), {})[self.variant(row)] = row
        found = sorted(lines.values(), key=lambda line: self.order(next(iter(line.values()))))
        shown = [line for line in found if self.shown(next(iter(line.values())))]
        aligned = ["---" if n in self.words else "--:" for n in range(len(self.columns))]
        head, *body = (
            f"| {' | '.join(cells)} |\n"
            for cells in (
                [heading for heading, _ in self.columns],
                *([cell(line) for _, cell in self.columns] for line in shown),
            )
        )
        end = self.end([row for line in found for row in line.values()])
        return f"{head}|{'|'.join(aligned)}|\n{''.join(body)}{end}"


def of_every_processor(
    folder: str, lead: Sequence[tuple[str, Cell]], columns: Columns, **options: Any
) -> Callable[[], str]:
    """Describe a table with columns for each processor, side by side.

    Each has a file of a folder of results, which ``make bench-report`` adds. lead: the columns
    before. options: of the ``Table``.
    """

    def write() -> str:
        files = sorted(f"{folder}/{file.name}" for file in (RESULTS / folder).glob("*.json"))
        names = [processor_of(read_results(file)) for file in files]
        all_columns = (*lead, *(column for name in names for column in columns(name)))
        return Table(files, all_columns, variant=lambda row: processor_of(row.data), **options)()

    return write


def is_gru(row: Row) -> bool:
    """Tell which of two cells comes second."""
    return bool(row.case["rnn"] != "lstm")


CELL = text(lambda row: str(row.case["rnn"].upper()))
SIZES = "batch x time x input x units", text(lambda row: "x".join(map(str, row.sizes)))
THREADS = "threads", text(lambda row: str(row.data["threads"]))


# ---- layers --------------------------------------------------------------------------------------


def _short_ms(row: Row) -> str:
    ours = row.medians.get(OURS)
    return "" if ours is None else f"{ours:.2f}" if ours < 9.995 else f"{ours:.3g}"


def _to_best(row: Row) -> str:
    name = row.best_peer()
    return f"{row.ratio(name)} {SHORT.get(name, name)}" if name else ""


def _of_best(rows: Iterable[Row]) -> list[float]:
    return [row.medians[OURS] / row.medians[name] for row in rows if (name := row.best_peer())]


def _sum_layers_up(rows: Sequence[Row]) -> str:
    ratios, small = _of_best(rows), _of_best(r for r in rows if r.case["batch"] in (1, 8))
    return (
        f"\nMeasured: {len(ratios)} cases ({', '.join(sorted({r.case['merge'] for r in rows}))}), "
        f"{sum(r <= 1 for r in ratios)} of them at least as fast as the best other, "
        f"median {median(ratios):.2f}; of batch 1 and 8: {median(small):.2f}.\n"
    )


def layers(*, training: bool) -> Table:
    """Describe the grid of cells and sizes; of all merge modes ``mul`` is shown."""
    return Table(
        ("engine-2026-11-25.json", "engine-training-2026-11-25.json", "engine-2026-11-28.json"),
        (
            ("two layers, `mul`", text(lambda row: row.kind)),
            SIZES,
            ("k2t, ms", text(_short_ms, False)),
            ("/ torch", ratio(of=False)),
            ("/ best other", text(_to_best, False)),
            ("same, padded to half: ms", text(_short_ms, True)),
            ("/ torch", ratio(of=True)),
            ("/ best other", text(_to_best, True)),
        ),
        line=lambda row: (row.kind, row.case["merge"], row.sizes),
        variant=lambda row: row.case["masked"],
        kept=lambda row: row.case["training"] is training,
        order=lambda row: ([*KINDS.values()].index(row.kind), row.sizes),
        shown=lambda row: bool(row.case["merge"] == "mul"),
        end=_sum_layers_up,
    )


FLOOR = Table(
    ["layers-2026-11-27.json"],
    (
        ("two layers", lambda line: f"{CELL(line)}, `{line[None].case['merge']}`"),
        SIZES,
        THREADS,
        ("k2t, ms", ms()),
        ("of the floor", text(lambda row: f"{row.medians[OURS] / row.data['floor_ms']:.2f}")),
        ("/ ONNX Runtime", ratio("ONNX Runtime")),
        ("/ OpenVINO", ratio("OpenVINO")),
    ),
)

STACKS = Table(
    ["stacks-2026-11-26.json"],
    (
        ("`mul`", CELL),
        SIZES,
        *(
            column
            for count, many in ((1, "1 layer"), (2, "2 layers"), (4, "4 layers"))
            for column in (
                (f"{many}: at once, us", text(lambda r: f"{1e3 * r.medians[OURS]:.0f}", count)),
                ("one by one", text(lambda r: f"{1e3 * r.medians['one by one']:.0f}", count)),
                ("ratio", ratio("one by one", of=count)),
            )
        ),
    ),
    line=lambda row: (row.case["rnn"], row.sizes),
    variant=lambda row: row.case["layers"],
)


# ---- training ------------------------------------------------------------------------------------


def _kind_of_step(row: Row) -> str:
    return "dropout" if row.case["dropout"] else "masked" if row.case["masked"] else "plain"


def _dropped_to_plain(line: Line) -> str:
    return line.get("dropout", NOTHING).ratio(PLAIN, of=line.get("plain", NOTHING))


def _sum_steps_up(rows: Sequence[Row]) -> str:
    timed = [row.medians for row in rows if PLAIN in row.medians and not row.case["dropout"]]
    ratios = [medians[OURS] / medians[PLAIN] for medians in timed]
    return (
        f"\nOf {len(ratios)} steps without dropout {sum(r <= 0.7 for r in ratios)} take "
        f"at most 0.70 of torch's time; the largest ratio is {max(ratios):.2f}.\n"
    )


TRAINING_STEPS = Table(
    ["training-layers-2026-11-27.json"],
    (
        ("two layers, `mul`", CELL),
        SIZES,
        THREADS,
        ("k2t, ms", ms(of="plain")),
        ("/ torch", ratio(of="plain")),
        ("padded to half: ms", ms(of="masked")),
        ("/ torch", ratio(of="masked")),
        ("with dropout: ms", ms(of="dropout")),
        ("/ loop in torch", ratio(LOOP, of="dropout")),
        ("/ torch without dropout", _dropped_to_plain),
    ),
    line=lambda row: (row.case["rnn"], row.sizes, row.data["threads"]),
    variant=_kind_of_step,
    order=lambda row: (is_gru(row), row.sizes, row.data["threads"]),
    end=_sum_steps_up,
)

# ---- long sequences, precision -------------------------------------------------------------------

WHOLE = {1: 20_000, 200: 1_000}  # rows -> steps


def _part_of(row: Row) -> Any:
    """Name what was measured: time, one direction, or the memory of layers and a share of steps."""
    layers, batch, steps = row.at("layers", "batch", "time")
    return (layers, WHOLE[batch] // steps) if row.data["part"] == "memory" else row.data["part"]


def _shares(line: Line) -> str:
    return ", ".join(line[2, share].ratio(OURS, of=line[2, 1]) for share in (2, 4))


def _memory(form: str, name: str = OURS, *, of: Any) -> Cell:
    return text(lambda row: form.format(row.timings[name]["above_mb"]), of)


LONG = Table(
    ["long-2026-11-26.json"],
    (
        ("two layers, `concat`", CELL),
        SIZES,
        ("k2t, ms", ms(form="{:.0f}", of="time")),
        ("/ ONNX Runtime", ratio("ONNX Runtime", of="time")),
        ("a half, a quarter of the steps", _shares),
        ("memory above, MB: one layer", _memory("{:.2f}", of=(1, 1))),
        ("two layers", _memory("{:.0f}", of=(2, 1))),
        ("one direction: whole, ms", ms("whole", "{:.0f}", of="one direction")),
        ("in chunks of 100", ms("in chunks", "{:.0f}", of="one direction")),
        ("memory above, MB", _memory("{:.1f}", "in chunks", of="one direction")),
    ),
    line=lambda row: (row.case["rnn"], row.case["batch"]),
    variant=_part_of,
)

_BF16, _INT8, _F32 = "k2t bfloat16", "k2t int8", "k2t float32"
_PEERS = ("torch float32", "ONNX Runtime float32", "OpenVINO float32")
_THEIRS = ("OpenVINO default", "ONNX Runtime int8", "torch quantize_dynamic")


def _best_float32(row: Row) -> str:
    return row.ratio(row.best(_PEERS), _F32)


def _errors(*names: str, of: str) -> Cell:
    def say(row: Row) -> str:
        found = [row.timings.get(name, {}).get("relative_error") for name in names]
        return ", ".join("-" if error is None else f"{error:.1e}" for error in found)

    return text(say, of)


def _times_on(name: str) -> Sequence[tuple[str, Cell]]:
    return (
        (f"{name}: float32, ms", ms(_F32, of=name)),
        ("/ best other", text(_best_float32, name)),
        ("bfloat16 / float32", ratio(_F32, _BF16, of=name)),
        ("/ OpenVINO's", ratio(_THEIRS[0], _BF16, of=name)),
        ("int8 / float32", ratio(_F32, _INT8, of=name)),
        ("/ ONNX Runtime's", ratio(_THEIRS[1], _INT8, of=name)),
        ("/ torch's", ratio(_THEIRS[2], _INT8, of=name)),
    )


def _errors_on(name: str) -> Sequence[tuple[str, Cell]]:
    return (
        (f"{name}: bfloat16, OpenVINO's", _errors(_BF16, _THEIRS[0], of=name)),
        ("int8, ONNX Runtime's, torch's", _errors(_INT8, *_THEIRS[1:], of=name)),
    )


_CASE = ("two layers, `concat`", CELL)
PRECISION_TIMES = of_every_processor(
    "precision",
    (_CASE, SIZES, THREADS),
    _times_on,
    line=lambda row: (row.case["rnn"], row.sizes, row.data["threads"]),
    order=lambda row: (is_gru(row), row.case["batch"], row.data["threads"]),
)
# Numbers do not depend on threads.
PRECISION_ERRORS = of_every_processor(
    "precision",
    (_CASE, SIZES),
    _errors_on,
    line=lambda row: (row.case["rnn"], row.sizes),
    kept=lambda row: row.data["threads"] == 1,
    order=lambda row: (is_gru(row), row.case["batch"]),
)


# ---- models --------------------------------------------------------------------------------------


def _name_of(row: Row) -> str:
    path: str = row.case["path"]
    return path.split(".weights")[0].rpartition("__")[0] or Path(path).stem


def _best_other(row: Row) -> str:
    name = row.best_peer()
    return f"{row.medians[name]:.3g} {name}" if name else ""


def _to_keras(row: Row) -> str:
    name = row.best(name for name in row.medians if name.startswith("Keras"))
    return f"{row.medians[OURS] / row.medians[name]:.2g}" if name else ""


def _sum_models_up(rows: Sequence[Row]) -> str:
    ratios = _of_best(rows)
    return (
        f"\nMeasured: {len(ratios)} cases, {sum(r <= 1 for r in ratios)} of them at least as fast "
        f"as the best other, median {median(ratios):.2f}, largest ratio {max(ratios):.2f}.\n"
    )


MODELS = of_every_processor(
    "models",
    (("model", text(_name_of)), ("batch", text(lambda row: str(row.case["batch"])))),
    lambda name: (
        (f"{name}: k2t, ms", ms(of=name)),
        ("compiled by torch, ms", ms(COMPILED, of=name)),
        ("best other, ms", text(_best_other, name)),
        ("k2t / best other", text(lambda row: row.ratio(row.best_peer()), name)),
        ("k2t / best Keras", text(_to_keras, name)),
    ),
    line=lambda row: (_name_of(row), row.case["batch"]),
    end=_sum_models_up,
    words=(0,),
)
