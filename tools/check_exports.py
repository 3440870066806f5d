"""Export models along every path, run them without the package, and record what is equal.

    python tools/check_exports.py --out a.jsonl --part 0/2                # fixtures, one half
    python tools/check_exports.py --out b.jsonl --paths .pt2 --titles     # one file of each case
    python tools/check_exports.py --out c.jsonl --paths compiled --only /bi_lstm,/mask_bi
    python tools/check_exports.py --out d.jsonl --oracles FOLDER MODEL MODEL,CONFIG
    python tools/check_exports.py --summary a.jsonl b.jsonl d.jsonl       # benchmarks/results

Needs ``pip install '.[export]' openvino``, and a C++ compiler for the path ``compiled``, which is
done only where it is asked for (a minute a model). The batches have the sizes (B, T) of the file,
(5, T), (1, T), (3, T + 4), (4, T + 5) and (2, 1), as far as the converted model takes them, and
rows that are full, padded right, padded left, with gaps, and empty. Equal to eager: 1e-5 + 1e-4
|y|; with an oracle: 5e-5; gradients, which are computed in float64: 1e-9 + 1e-9 |y|. A record has
one JSON object a line (``seconds``: of computing, to write the file; ``by``: which code and
packages). Of the models with one structure (all but weights and names) one is exported.

A summary adds records to those kept in ``benchmarks/results/exports.jsonl.xz`` and counts all; what
is kept is not done again. ``--again`` repeats what other code or other packages found.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import select
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import export_cases
import export_summary
import numpy as np
import source_child
import torch
from export_cases import Batch, Case, Subject

import keras2torch_birnn
from keras2torch_birnn.comparison.tolerance import Tolerance, all_close, max_errors
from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.exporting import find_target
from keras2torch_birnn.exporting.exporter import copy_structure
from keras2torch_birnn.exporting.source import session
from keras2torch_birnn.schema.training_rules import with_training_rules
from keras2torch_birnn.spec import ModelSpec

LIMIT, WITH_ROUNDING = Tolerance(1e-5, 1e-4, 0.0), Tolerance(1e-5, 1e-4, 4.0)
SECONDS = 600.0  # for one file in one runner
CHILD = Path(__file__).with_name("exported_child.py")
# What an export depends on: folders of the package, and other packages.
CODE = ("exporting", "functional", "layers", "rnn")
PACKAGES = ("torch", "onnxruntime", "openvino", "onnxscript")


# ---- paths --------------------------------------------------------------------------------------


def write_target(subject: Subject, file: Path, batch: Batch) -> None:
    """Export by the target of the file's suffix."""
    find_target(file).load().write(copy_structure(subject.model), subject.free, file)


def write_in_float64(subject: Subject, file: Path, batch: Batch) -> None:
    """Export likewise, in float64."""
    write_target(export_cases.in_float64(subject), file, batch)


def write_compiled(subject: Subject, file: Path, batch: Batch) -> None:
    """Compile an archive of torch.export by AOTInductor, as docs/deploy.md says."""
    archive = file.with_name("archive.pt2")
    write_target(subject, archive, batch)
    program, inductor = torch.export.load(archive), cast(Any, torch._inductor)
    options = {"inplace_buffers": False}
    inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)


class Runner(NamedTuple):
    """A runtime of an exported file: its name in the child, and what else that needs."""

    name: str
    script: str | None = None
    batches: Callable[[Case, Subject], Iterable[Batch]] = export_cases.batches


class Export(NamedTuple):
    """One way to write a file, and what runs it by the name in the record."""

    file: str
    write: Callable[[Subject, Path, Batch], None]
    runners: Mapping[str, Runner]


EXPORTS: Mapping[str, Export] = {
    ".onnx": Export(
        "model.onnx",
        write_target,
        {"ONNX Runtime": Runner("ONNX Runtime"), "OpenVINO": Runner("OpenVINO")},
    ),
    ".py": Export(
        "model.py",
        write_target,
        {"source": Runner("source", session.__file__)},
    ),
    "gradients": Export(
        "model.py",
        write_in_float64,
        {"gradients": Runner("training", source_child.__file__, export_cases.gradients)},
    ),
    ".pt2": Export("model.pt2", write_target, {"torch.export": Runner("torch.export")}),
    "compiled": Export("model.pt2", write_compiled, {"AOTInductor": Runner("AOTInductor")}),
}


# ---- the child ----------------------------------------------------------------------------------


class Child:
    """Process that runs exported files; it begins anew after a crash."""

    def __init__(self) -> None:
        self._process: Any = None

    def run(self, **job: Any) -> tuple[str | None, list[str | None]]:
        """Do one job; return why the file cannot be opened, and for each batch why not run."""
        process: Any = self._process or _start()
        self._process = process
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], SECONDS)
        line = process.stdout.readline() if ready else ""
        if line:
            error, errors = json.loads(line)
            return error, errors
        code = self.close()
        return (f"it crashed (code {code})" if ready else f"it took over {SECONDS:.0f} s"), []

    def close(self) -> int:
        """End the process, if there is one; return its code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        code: int = process.wait()
        process.stdin.close()
        process.stdout.close()
        return code


def _start() -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    call = [sys.executable, "-I", str(CHILD)]
    return subprocess.Popen(call, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)


# ---- one model ----------------------------------------------------------------------------------


def key_of(spec: ModelSpec) -> str:
    """Return a name that models of the same structure share: they differ in weights and names."""
    data: Any = json.loads(spec.to_json())
    del data["generation"], data["notes"]  # what follows from the version is in each layer
    root = with_training_rules(spec.root, spec.generation)
    rules = [(layer.config["trainable"], layer.semantics) for layer in root.walk()]
    text = json.dumps(_number_names(data, {}), sort_keys=True) + str(rules)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _number_names(data: Any, names: dict[str, str]) -> Any:
    """Put numbers in the place of the names of layers, in the order of their appearance."""

    def number(name: Any) -> str:
        return names.setdefault(str(name), str(len(names)))

    match data:
        case {"tensor": [name, *place]}:
            return {"tensor": [number(name), *place]}
        case {"class_name": _, "name": name, "place": _, **rest}:
            return {
                "layer": number(name),
                **_number_names(rest, names),
                "class": data["class_name"],
            }
        case {"layer": name, "index": _, **rest}:
            return {"call": [number(name), data["index"]], **_number_names(rest, names)}
        case dict():
            return {key: _number_names(value, names) for key, value in data.items()}
        case list():
            return [_number_names(value, names) for value in data]
    return data


def examine(
    case: Case, subject: Subject, exports: Sequence[str], child: Child
) -> dict[str, dict[str, Any]]:
    """Export one model along some paths; return what each runner found."""
    made: dict[Any, list[Batch]] = {}
    found: dict[str, dict[str, Any]] = {}
    first = next(iter(export_cases.batches(case, subject)))
    for export in exports:
        with tempfile.TemporaryDirectory() as name:
            file = Path(name, EXPORTS[export].file)
            row = _write(EXPORTS[export], subject, file, first)
            for shown, runner in EXPORTS[export].runners.items():
                found[shown] = dict(row)
                if "refused" in row or "failed" in row:
                    continue
                if runner.batches not in made:
                    made[runner.batches] = list(runner.batches(case, subject))
                found[shown] |= _run(child, runner, file, made[runner.batches])
    return {shown: {**one, "by": made_by()} for shown, one in found.items()}


@cache
def made_by() -> str:
    """Return which code makes an export, as a hash, and the versions of what it needs."""
    root = Path(keras2torch_birnn.__file__).parent
    files = sorted(file for folder in CODE for file in (root / folder).rglob("*.py"))
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]
    packages = [f"{name} {version(name)}" for name in PACKAGES if find_spec(name)]
    return ", ".join((code, *packages))


def _write(export: Export, subject: Subject, file: Path, batch: Batch) -> dict[str, Any]:
    begin = time.process_time()
    found: dict[str, Any] = {}
    try:
        export.write(subject, file, batch)
        if file.suffix == ".onnx":
            found = count_nodes(file)
    except K2TError as error:
        problems = error.problems or (error,)
        found = {"refused": [[p.place or "", p.message] for p in problems]}
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    return {"seconds": round(time.process_time() - begin, 1), **found}


def count_nodes(file: Path) -> dict[str, Any]:
    """Count the nodes of an ONNX file: all, recurrent ones, and loops."""
    import onnx

    kinds = [node.op_type for node in onnx.load(file).graph.node]
    counted = ("LSTM", "GRU", "RNN", "Loop", "Scan", "If")
    return {"nodes": len(kinds), **{k: kinds.count(k) for k in counted if k in kinds}}


def _run(child: Child, runner: Runner, file: Path, batches: Sequence[Batch]) -> dict[str, Any]:
    """Run a file on batches in the child; return the worst verdict on each size."""
    given, result = file.with_suffix(".in.npz"), file.with_suffix(".out.npz")
    named: dict[str, Any] = {
        f"{number}_{place}": x
        for number, batch in enumerate(batches)
        for place, x in enumerate(batch.inputs)
    }
    np.savez(given, **named)
    why, errors = child.run(
        runner=runner.name,
        file=str(file),
        given=str(given),
        found=str(result),
        script=runner.script,
    )
    if why:
        return {"not opened": why}
    verdicts: dict[str, str] = {}
    with np.load(result) as data:
        for number, (batch, error) in enumerate(zip(batches, errors, strict=True)):
            outputs = [data[name] for name in data.files if name.startswith(f"{number}_")]
            verdict = f"not run: {error}" if error else judge(outputs, batch)
            verdicts[batch.size] = max(verdicts.get(batch.size, ""), verdict, key=_badness)
    return {"sizes": verdicts}


def _badness(verdict: str) -> int:
    return ("", "equal", "rounding", "not run", "wrong").index(verdict.partition(":")[0])


def judge(outputs: Sequence[Any], batch: Batch) -> str:
    """Return "equal", "rounding" where it is only as far off as float32 itself, or how far."""
    limits = {"equal": batch.limit} if batch.limit else {"equal": LIMIT, "rounding": WITH_ROUNDING}
    for verdict, limit in limits.items():
        if all_close(outputs, batch.outputs, batch.roundings, limit):
            return verdict
    shapes = [y.shape for y in outputs], [y.shape for y in batch.outputs]
    if shapes[0] != shapes[1]:
        return f"wrong: shapes {shapes[0]}, not {shapes[1]}"
    return f"wrong: {max_errors(outputs, batch.outputs)[0]:.1e}"


# ---- many models --------------------------------------------------------------------------------


class Record:
    """File of results, a JSON object a line, and what is known: in it, and elsewhere."""

    def __init__(self, path: Path, known: Iterable[Mapping[str, Any]] = ()) -> None:
        self._path = path
        self.keys: dict[str, str] = {}
        self.done: set[tuple[str, str]] = set()
        for row in (*known, *(export_summary.read(path) if path.exists() else ())):
            self._know(row)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._know(row)

    def _know(self, row: Mapping[str, Any]) -> None:
        if "broken" in row:
            return
        self.keys[row["name"]] = row.get("key", "")
        self.done |= {(row.get("key", ""), path) for path in row.get("paths", {})}

    def missing(self, key: str, exports: Sequence[str]) -> list[str]:
        """Return the exports of a model that are to be done."""
        return [e for e in exports if any((key, p) not in self.done for p in EXPORTS[e].runners)]


def made_here(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with what this code and these packages found, and without the rest."""
    return [
        {**row, "paths": {k: v for k, v in row["paths"].items() if v["by"] == made_by()}}
        for row in rows
        if "paths" in row
    ]


def check(cases: Sequence[Case], exports: Sequence[str], record: Record, seconds: float) -> None:
    """Examine all cases that the record lacks."""
    child, begin = Child(), time.monotonic()
    for case in cases:
        key = record.keys.get(case.name)
        if key == "" or (key and not record.missing(key, exports)):
            continue
        if time.monotonic() - begin > seconds:
            return
        start = time.monotonic()
        row: dict[str, Any] = {"name": case.name}
        try:
            with export_cases.opened(case) as spec:
                key = case.name if case.oracle else key_of(export_cases.as_stored(spec))
                row |= {"title": case.title(), "key": key, "paths": {}}
                if todo := record.missing(key, exports):
                    row["paths"] = examine(case, export_cases.make_subject(spec), todo, child)
        except K2TError as error:
            first = (error.problems or (error,))[0]  # without the path of an unpacked file
            why = ": ".join(filter(None, (first.place, first.message)))
            row = {"name": case.name, "not converted": why}
        except Exception as error:
            row = {"name": case.name, "broken": f"{type(error).__name__}: {error}"[:400]}
        record.add({**row, "total": round(time.monotonic() - start, 1)})


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="FILE or FILE,CONFIG instead of the fixtures")
    parser.add_argument("--out", type=Path, help="the record")
    parser.add_argument("--paths", default=",".join([*EXPORTS][:-1]), help="some, with commas")
    parser.add_argument("--only", default="", help="parts of names, with commas")
    parser.add_argument("--again", action="store_true", help="what other code found, too")
    parser.add_argument("--reverse", action="store_true", help="the last cases first")
    parser.add_argument("--titles", action="store_true", help="one file of each case and folder")
    parser.add_argument("--part", default="0/1", help="K/N: one of N parts, from 0")
    parser.add_argument("--oracles", type=Path, help="folder of NAME.npz with K__in and K__out")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("--summary", type=Path, nargs="+", help="records")
    options = parser.parse_args()
    if options.summary:
        export_summary.write(options.summary)
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cases = export_cases.others(options.models, options.oracles) or export_cases.fixtures()
    cases = [case for case in cases if any(part in case.name for part in options.only.split(","))]
    if options.titles:
        cases = list({case.title(): case for case in reversed(cases)}.values())
    cases = export_cases.part(cases, *map(int, options.part.split("/")))
    cases = cases[::-1] if options.reverse else cases
    kept = export_summary.kept()
    record = Record(options.out, made_here(kept) if options.again else kept)
    check(cases, options.paths.split(","), record, options.seconds)


if __name__ == "__main__":
    main()
