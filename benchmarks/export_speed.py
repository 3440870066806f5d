"""Time our ONNX in ONNX Runtime against that of torch's exporter and of tf2onnx.

    python benchmarks/export_speed.py FOLDER --cases          # writes a description of each case
    python benchmarks/export_speed_keras.py FOLDER            # with TensorFlow, Keras 2 and tf2onnx
    python benchmarks/export_speed.py FOLDER --json benchmarks/results/export-DATE.json
    python benchmarks/export_speed.py FOLDER --only 10 --again            # what is noise

Two Bidirectional layers with random weights: the cells and sizes of ``benchmarks/engine.py``. All
three files come from one Keras model; torch's exporter gets the converted model. Each is run by a
process of its own, parity with the reference is checked before anything is timed, and the rounds go
round robin (as ``k2t bench`` does). A case for which an exporter makes no file is timed without.
With ``--json``, rows of other cases in that file stay.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from engine import CELLS, SHAPES

import keras2torch_birnn as k2t
from keras2torch_birnn.bench.case import MERGES, Case, Stack, from_json, input_of, to_json
from keras2torch_birnn.bench.contenders import OURS, Contender
from keras2torch_birnn.bench.measure import Row, facts, measure
from keras2torch_birnn.bench.report import as_data, write_data

TORCH, TF2ONNX, AGAIN = "torch.onnx", "tf2onnx", f"{OURS} again"
SUFFIXES = {OURS: ".k2t.onnx", TORCH: ".torch.onnx", TF2ONNX: ".tf2onnx.onnx"}


def cases(merge: str) -> Iterator[Stack]:
    """Yield every case, the small ones first."""
    for sizes, (rnn, gate, after), masked in product(SHAPES, CELLS.values(), (False, True)):
        yield Stack(rnn, merge, 2, *sizes, gate, after, masked)


def write_cases(folder: Path, merge: str) -> None:
    """Describe every case in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, stack in enumerate(cases(merge)):
        folder.joinpath(f"{number:02}.json").write_text(to_json(stack), encoding="utf-8")


def by_torch(model: Any, stack: Stack, file: Path) -> str:
    """Export a converted model by torch alone; return why it cannot, empty if it can."""
    axes = {"x": {0: "batch", 1: "time"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                model,
                (torch.from_numpy(input_of(stack)),),
                file,
                dynamo=False,
                input_names=["x"],
                output_names=["y"],
                dynamic_axes=axes,
            )
        except Exception as error:
            file.unlink(missing_ok=True)
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def write_exports(keras: Path, stack: Stack) -> None:
    """Export the Keras file of a case by us and by torch, where that was not yet done."""
    ours, by_other = (keras.with_suffix(SUFFIXES[name]) for name in (OURS, TORCH))
    if ours.exists():
        return
    model = k2t.convert(keras)
    k2t.export(model, ours)
    if reason := by_torch(model, stack, by_other):
        print(f"{stack.label}: {TORCH}: {reason}")


def contenders_of(keras: Path, *, again: bool) -> dict[str, Contender]:
    """Return a contender for each file that there is; ours a second time if asked for."""
    found = {name: keras.with_suffix(suffix) for name, suffix in SUFFIXES.items()}
    if again:
        found[AGAIN] = found[OURS]
    return {
        name: Contender("by_onnx", str(file.resolve()), ("onnxruntime",))
        for name, file in found.items()
        if file.exists()
    }


def save(file: Path, head: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """Write rows to a file of JSON, in the order of the cases; rows of other cases stay there."""
    old = json.loads(file.read_text("utf-8")) if file.exists() else {"rows": []}
    measured = {"rounds": head["rounds"], "load_average": head["load_average"]}
    new = [{**row, **measured} for row in as_data({}, rows)["rows"]]
    found = {from_json(json.dumps(row["case"])): row for row in (*old["rows"], *new)}
    places: dict[Case, int] = {
        stack: place for merge in MERGES for place, stack in enumerate(cases(merge))
    }
    sizes = {key: head[key] for key in ("python", "machine", "processors", "threads")}
    ordered = [found[one] for one in sorted(found, key=places.__getitem__)]
    write_data(file, {**old, **sizes, "rows": ordered})


def shown(row: Row) -> str:
    """Format a line: medians, and the ratio to the better other."""
    times = "  ".join(f"{t.contender} {t.absent or f'{t.median_ms:.3f} ms'}" for t in row.timings)
    others = [row.ratio(OURS, name) for name in (TORCH, TF2ONNX)]
    ratio = max((r for r in others if r is not None), default=float("nan"))
    return f"{row.case.label:44} {times}  ratio {ratio:.2f}"


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", action="store_true", help="write the cases and stop")
    parser.add_argument("--export", action="store_true", help="write the ONNX files and stop")
    parser.add_argument("--again", action="store_true", help="time our file in two processes")
    parser.add_argument("--merge", default="mul")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", default=[], help="numbers of cases")
    options = parser.parse_args()
    if options.cases:
        write_cases(options.folder, options.merge)
        return
    head = facts(options.threads, options.rounds)
    print(", ".join(f"{key} {value}" for key, value in head.items()))
    rows: list[Row] = []
    for description in sorted(options.folder.glob("*.json")):
        if options.only and description.stem not in options.only:
            continue
        stack = from_json(description.read_text(encoding="utf-8"))
        keras = description.with_suffix(".h5")
        if not isinstance(stack, Stack) or not keras.exists():
            sys.exit(f"{keras}: run benchmarks/export_speed_keras.py first")
        write_exports(keras, stack)
        if options.export:
            continue
        found = contenders_of(keras, again=options.again)
        rows.append(
            measure(
                stack,
                threads=options.threads,
                rounds=options.rounds,
                contenders=list(found),
                table=found,
            )
        )
        print(shown(rows[-1]), flush=True)
        if options.json:
            save(options.json, facts(options.threads, options.rounds), rows[-1:])


if __name__ == "__main__":
    main()
