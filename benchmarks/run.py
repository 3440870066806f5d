"""Measure the cases of a benchmark, print them, and write their rows after every case."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contenders
from benchmarks.convert import processor
from keras2torch_birnn.cli.bench.contenders import Contender
from keras2torch_birnn.cli.bench.measure import Case, Row, facts_of_machine, measure
from keras2torch_birnn.cli.bench.report import footnotes, make_table
from keras2torch_birnn.cli.bench.stack import Stack, write_stack
from keras2torch_birnn.conversion import convert
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.rnn.engine_settings import set_engine
from keras2torch_birnn.spec import Array

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
CELLS: Mapping[str, Mapping[str, Any]] = {
    "lstm": {"rnn": "lstm"},
    "gru": {"rnn": "gru"},
    "lstm hard_sigmoid": {"rnn": "lstm", "gate": "hard_sigmoid"},
    "gru before hard_sigmoid": {"rnn": "gru", "gate": "hard_sigmoid", "reset_after": False},
}
# batch, steps, input, units
SHAPES = (
    (1, 64, 64, 64),
    (1, 200, 300, 256),
    (8, 100, 128, 128),
    (32, 128, 128, 128),
    (64, 256, 256, 256),
)
# Fixtures: a masked tagger, one on words and characters, a text classifier, two siamese inputs,
# attention in an encoder and decoder, hierarchical and of many heads, a CNN before a BiLSTM that
# reads lines, a reader of question and text, a two-dimensional CNN of speech.
ARCHITECTURES = (
    "mask_stack_bi_dense",
    "arch_ner_char_cnn",
    "arch_toxic",
    "arch_siamese",
    "arch_seq2seq_attention",
    "arch_hierarchy_attention",
    "arch_crnn_ocr",
    "arch_multi_head",
    "arch_reader",
    "arch_deep_speech_2d",
)
# File, the steps of its real inputs (one that fixes them keeps them), the file of its architecture.
TRAINED = (
    ("poreplex-0.4__demux-tetra-r3.hdf5", 350, None),
    ("shakkala-1.7__middle_model.h5", 495, None),
    ("medaka-0.6.5__r941_flip213_model.hdf5", 1000, None),
    ("medaka-1.3.4__r941_min_high_g360_model.hdf5", 1000, None),
    ("ethnicolr-0.9.8__census2000_ln_lstm.h5", 20, None),
    ("chars2vec-0.1.7__eng_50_weights.h5", 12, "chars2vec_eng_50.json"),
    ("sleepecg-0.5.9__ws-gru-mesa.keras", 960, None),
)


@dataclass(frozen=True)
class Task:
    """A case with its inputs and what is to come out; None: random ones, the model's outputs."""

    case: Case
    inputs: Sequence[Array] | None = None
    wanted: Sequence[Array] | None = None


def list_stacks(name: str, folder: Path) -> Iterator[Task]:
    """Yield stacks of two layers: cells, sizes, merges, padded to half of the steps and not."""
    cells = CELLS if name == "layers" else ("lstm", "gru")
    merges = ("concat", "sum", "mul", "ave") if name == "layers" else ("concat",)
    masks = (False,) if name == "precision" else (False, True)
    for shape, cell, merge, masked in product(SHAPES, cells, merges, masks):
        yield make_stack(folder, shape, cell, merge, masked=masked, trains=name == "training")


def make_stack(
    folder: Path,
    shape: Sequence[int],
    cell: str,
    merge: str,
    *,
    masked: bool = False,
    trains: bool = False,
) -> Task:
    """Write the file of a stack, and draw its inputs; a masked step is zero."""
    batch, steps, features, units = shape
    size = "x".join(map(str, shape))
    label = f"{cell} {merge}{' masked' * masked} {size}"
    file = folder / f"{label.replace(' ', '-')}.h5"
    write_stack(Stack(merge=merge, layers=2, features=features, units=units, masked=masked,
                      **CELLS[cell]), file)  # fmt: skip
    x = np.random.default_rng(1).normal(size=(batch, steps, features)).astype("f4")
    if masked:
        spaced = steps * (0.25 + 0.5 * (np.arange(batch) + 0.5) / batch)
        x[np.arange(steps) >= np.maximum(1, spaced.round())[:, None]] = 0
    case = Case(label, str(file), None, batch, steps)
    return Task(case, [x], [train_exactly(case, x)] if trains else None)


def train_exactly(case: Case, x: Array) -> Array:
    """Compute the output after one step of training, in float64, equation by equation."""
    import torch

    model = convert(case.path).double()
    set_engine(model, "loop")
    step = contenders.train(model, [torch.from_numpy(x).double()])
    found: Array = step.outputs().numpy() if step.outputs else x
    return found


def list_models(real: Path | None) -> Iterator[Task]:
    """Yield whole models of 1, 8 and 32 rows."""
    found: list[tuple[Path, int, str | None]] = [
        (file, 50, config) for file, config in map(find_fixture, ARCHITECTURES)
    ]
    if real:
        found += [(real / name, steps, arch and str(real / arch)) for name, steps, arch in TRAINED]
    for (file, steps, config), rows in product(found, (1, 8, 32)):
        yield Task(Case(f"{file.name.partition('__')[0]} {rows}", str(file), config, rows, steps))


def find_fixtures() -> Path:
    """Return the folder of all fixtures, unpacked."""
    sys.path.append(str(ROOT / "tools"))
    return Path(import_module("fixture_archives").unpacked())


def find_fixture(name: str) -> tuple[Path, str | None]:
    """Return the file of a fixture of Keras 3, and that of its architecture if it is beside it."""
    folder = find_fixtures() / "keras-3.15.1"
    for suffix in (".keras", ".h5", ".weights.h5"):
        if (file := folder / f"{name}{suffix}").exists():
            beside = folder / f"{name}.json"
            return file, str(beside) if beside.exists() else None
    raise FileNotFoundError(f"no fixture of Keras 3 has the name {name}")


TABLES: Mapping[str, Mapping[str, Contender]] = {
    "layers": contenders.LAYERS,
    "training": contenders.TRAINING,
    "models": contenders.MODELS,
    "precision": contenders.PRECISION,
}


def main(arguments: Sequence[str]) -> None:
    """Run a benchmark; --record adds its rows to the file of this processor."""
    name, *rest = arguments
    options = _parse(name, rest)
    table = {
        one: contender
        for one, contender in TABLES[name].items()
        if not options.only or one in options.only
    }
    with tempfile.TemporaryDirectory() as folder:
        stacks = list_stacks(name, Path(folder))
        tasks = list_models(options.real) if name == "models" else stacks
        wanted = [set(words.split()) for words in options.cases or [""]]
        for task in tasks:
            if not any(some <= {*task.case.label.split()} for some in wanted):
                continue
            for threads in options.threads:
                _measure(name, task, table, threads, options)


def _parse(name: str, arguments: Sequence[str]) -> Namespace:
    parser = ArgumentParser(f"python -m benchmarks {name}")
    parser.add_argument(
        "--cases", nargs="+", metavar="WORDS", help="those with all words of one: 'lstm mul masked'"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders")
    parser.add_argument("--threads", type=int, nargs="+", default=[2], help="one number or several")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--real", type=Path, help="models: folder of the trained models")
    parser.add_argument(
        "--record", action="store_true", help="write to this processor's file in benchmarks/results"
    )
    return parser.parse_args(arguments)


def _measure(
    name: str, task: Task, table: Mapping[str, Contender], threads: int, options: Namespace
) -> None:
    row = measure(
        task.case,
        read_model(task.case.path, config=task.case.config),
        threads=threads,
        rounds=options.rounds,
        contenders=table,
        inputs=task.inputs,
        wanted=task.wanted,
    )
    print(f"{task.case.label}, {threads} threads")
    for cells in make_table(row).rows:
        print("    {:28} {:>9} {:>9} {:>9} {:>9} {:>6}".format(*cells))
    for note in footnotes(row):
        print(f"    {note}", flush=True)
    if options.record:
        record(RESULTS, name, row, facts_of_machine(threads, options.rounds))


def record(folder: Path, name: str, row: Row, facts: Mapping[str, Any]) -> None:
    """Add a row to the file of this processor; it replaces an earlier one of the same case."""
    head = {"processor": processor(), "instructions": facts["native_kernel"]}
    words = re.findall(r"[a-z0-9]+", " ".join(head.values()).lower())
    file = folder / f"{'-'.join(words)}.json"
    old = json.loads(file.read_text("utf-8"))["rows"] if file.exists() else []
    new = {
        "benchmark": name,
        "case": row.case.label,
        "threads": facts["threads"],
        "ms": {t.contender: round(t.median_ms, 4) for t in row.timings if t.times_ms},
        "error": {t.contender: float(f"{t.error:.1e}") for t in row.timings if t.times_ms},
    }
    key = ("benchmark", "case", "threads")
    rows = [one for one in old if any(one[part] != new[part] for part in key)] + [new]
    write_rows(file, head, rows)


def write_rows(file: Path, head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a file of results, a row a line."""
    lines = ",\n ".join(json.dumps(row) for row in rows)
    text = f'{json.dumps(head)[:-1]}, "rows": [\n {lines}\n]}}\n'
    written = file.with_name(f"{file.name}.new")
    written.write_text(text, encoding="utf-8")
    written.replace(file)
