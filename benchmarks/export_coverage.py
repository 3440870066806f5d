"""Export fixtures and given models, run them in each runtime, and count what is equal.

    python benchmarks/export_coverage.py --out run.jsonl               # every fixture
    python benchmarks/export_coverage.py --out run.jsonl --every 20 MODEL...
    python benchmarks/export_coverage.py --table run.jsonl             # the table of docs/deploy.md

Needs ``pip install '.[export]' openvino``. A model is compared with the converted one at batch and
steps (5, T), (1, T), (3, T + 4) and (2, 1), where its file leaves them free and the converted model
runs; rows are full, padded right, padded left, with gaps, and empty. Equal: 1e-5 + 1e-4 |y|, or
four times float32's own rounding there. A model is one line of the record; those that the record
has already are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import keras2torch_birnn as k2t
from keras2torch_birnn.comparison.tolerance import Tolerance, all_close, max_errors
from keras2torch_birnn.conversion import copy_in_float64, origin, run
from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.exporting import find_target, onnx_runtimes
from keras2torch_birnn.exporting.exporter import copy_structure
from keras2torch_birnn.reference.sample_inputs import draw_inputs, fitting_steps, free_steps
from keras2torch_birnn.schema.stored import model_from_json
from keras2torch_birnn.spec import Array, ModelSpec

ROOT = Path(__file__).parents[1]
LIMIT = Tolerance(1e-5, 1e-4, 4.0)
LOOPS = {"Loop", "Scan", "If"}


def fixtures() -> list[tuple[str, Path, Path | None]]:
    """Return name, file and architecture of every fixture of a model."""
    entries = json.loads((ROOT / "fixtures" / "manifest.json").read_text())["files"]
    rows = entries.values() if isinstance(entries, dict) else entries
    return [
        (
            one["file"],
            ROOT / "fixtures" / one["file"],
            one["config"] and ROOT / "fixtures" / one["config"],
        )
        for one in rows
    ]


def batches(spec: ModelSpec) -> Iterator[tuple[str, tuple[Array, ...]]]:
    """Yield inputs at every size, named by batch and steps."""
    own = fitting_steps(spec, (11, 7))
    drawn = draw_inputs(spec, steps=own, seed=1)
    shapes = [layer.config["shape"] for layer in spec.input_layers()]
    yield "own", drawn
    if any(shape is not None and shape[0] is not None for shape in shapes):
        return
    more = draw_inputs(spec, steps=own, seed=2)
    five = tuple(np.concatenate((a, b))[:5] for a, b in zip(drawn, more, strict=True))
    yield "5, T", five
    for row in range(5):
        yield "1, T", tuple(x[row : row + 1] for x in five)
    if all(shape is not None and None not in shape[1:] for shape in shapes):
        return
    longer = draw_inputs(spec, steps=own + 4, seed=3)
    yield "3, T + 4", tuple(x[:3] for x in longer)
    yield "3, T + 4", tuple(x[-3:] for x in longer)
    one = draw_inputs(spec, steps=1, seed=4)
    yield "2, 1", tuple(x[:2] for x in one)
    yield "2, 1", tuple(x[-2:] for x in one)


def expectations(model: nn.Module, spec: ModelSpec) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield size, inputs, outputs in float32 and their rounding, where the model runs."""
    exact = copy_in_float64(model)
    for name, inputs in batches(spec):
        given = tuple(map(torch.from_numpy, inputs))
        try:
            single = [y.numpy() for y in run(model, given)]
            double = [y.numpy() for y in run(exact, given)]
        except (RuntimeError, ValueError, IndexError, K2TError):
            continue  # this model has no such size
        rounding = [max_errors([a], [b])[0] for a, b in zip(single, double, strict=True)]
        yield name, inputs, single, rounding


def examine(path: Path, config: Path | None, runtimes: Sequence[str]) -> dict[str, Any]:
    """Export one model and run it at every size in every runtime."""
    try:
        model = k2t.convert(path, config=config)
    except K2TError as error:
        return {"not converted": str(error).splitlines()[0][-200:]}
    spec = free_steps(model_from_json(json.loads(origin(model).spec_text)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        try:
            find_target(file).load().write(copy_structure(model), spec, file)
        except K2TError as error:
            return {"refused": [line[-300:] for line in error.lines()]}
        import onnx

        graph = onnx.load(file).graph
        kinds = Counter(node.op_type for node in graph.node)
        cases = list(expectations(model, spec))
        found: dict[str, Any] = {"nodes": len(graph.node)}
        found["loops"] = sorted(LOOPS & set(kinds))
        found["recurrent"] = {k: kinds[k] for k in ("LSTM", "GRU", "RNN") if k in kinds}
        for runtime in runtimes:
            found[runtime] = judge(file, runtime, cases)
        return found


def judge(file: Path, runtime: str, cases: Sequence[tuple[str, Any, Any, Any]]) -> dict[str, str]:
    """Return the verdict at every size: equal, or how far."""
    verdicts: dict[str, str] = {}
    try:
        session = onnx_runtimes.RUNTIMES[runtime].open(file)
    except Exception as error:
        text = " ".join(str(error).split())
        return {"all": f"not loaded: {type(error).__name__}: {text[-300:]}"}
    for name, inputs, expected, rounding in cases:
        try:
            actual = session(inputs)
        except Exception as error:
            text = " ".join(str(error).split())
            verdicts[name] = f"not run: {type(error).__name__}: {text[-300:]}"
            continue
        if all_close(actual, expected, rounding, LIMIT):
            verdicts.setdefault(name, "equal")
        else:
            verdicts[name] = f"wrong: {max_errors(actual, expected)[0]:.1e}"
    return verdicts


def table(record: Path) -> str:
    """Return counts by runtime and size, and by name what is refused or not equal."""
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    rows = [row for row in rows if "not converted" not in row]
    refused = [row for row in rows if "refused" in row]
    exported = [row for row in rows if "nodes" in row]
    lines = [f"{len(exported)} of {len(rows)} exported, {len(refused)} refused", ""]
    sizes = ("own", "5, T", "1, T", "3, T + 4", "2, 1")
    runtimes = [key for key in onnx_runtimes.RUNTIMES if any(key in row for row in exported)]
    lines += [f"| runtime | {' | '.join(sizes)} |", f"|---{'|---' * len(sizes)}|"]
    for runtime in runtimes:
        cells = []
        for size in sizes:
            verdicts = [row[runtime].get(size, row[runtime].get("all")) for row in exported]
            verdicts = [v for v in verdicts if v is not None]
            cells.append(f"{sum(v == 'equal' for v in verdicts)} of {len(verdicts)}")
        lines.append(f"| {runtime} | {' | '.join(cells)} |")
    reasons = Counter(line.partition(": ")[2] for row in refused for line in row["refused"])
    lines += ["", "Refused:", *(f"- {n} x {reason}" for reason, n in reasons.most_common())]
    for runtime in runtimes:
        wrong = Counter(
            (verdict.partition(":")[0], row["name"])
            for row in exported
            for verdict in row[runtime].values()
            if verdict != "equal"
        )
        lines += ["", f"Not equal in {runtime}: {len({name for _, name in wrong})} models"]
        lines += [f"- {name}: {what}" for what, name in sorted(wrong)]
    return "\n".join(lines)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="more models, by path")
    parser.add_argument("--out", type=Path, help="the record, one JSON object a line")
    parser.add_argument("--table", type=Path, help="print the table of a record")
    parser.add_argument("--every", type=int, default=1, help="take every n-th fixture; 0: none")
    parser.add_argument("--first", type=int, default=0, help="from this one on")
    parser.add_argument("--like", default="", help="only fixtures whose name has this in it")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return
    begun = time.monotonic()
    torch.set_num_threads(1)
    runtimes = [name for name in onnx_runtimes.RUNTIMES if not onnx_runtimes.why_missing(name)]
    known = set()
    if options.out.exists():
        known = {json.loads(line)["name"] for line in options.out.read_text().splitlines()}
    todo = [row for row in fixtures() if options.like in row[0]]
    todo = todo[options.first :: options.every] if options.every else []
    todo += [(path.name, path, None) for path in options.models]
    with options.out.open("a") as record:
        for name, path, config in todo:
            if name in known or time.monotonic() - begun > options.seconds:
                continue
            start = time.monotonic()
            try:
                found = examine(path, config, runtimes)
            except Exception as error:
                found = {"failed": f"{type(error).__name__}: {error}"[:300]}
            seconds = round(time.monotonic() - start, 1)
            record.write(json.dumps({"name": name, "seconds": seconds, **found}) + "\n")
            record.flush()


if __name__ == "__main__":
    sys.exit(main())
