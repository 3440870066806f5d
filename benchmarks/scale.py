"""Time the same work in one, two and four processes: what docs/scale.md tells to do.

    python -m benchmarks scale --real FOLDER [--only convert dask ray spark] [--processes 1 2 4]

convert: copies of a model by ``k2t convert --jobs``. dask, spark: the lines of the page. ray:
``examples/predict_many.py``. A figure is the time by the clock of the whole command, with the start
of the engine; an engine that is not installed is left out. Every round measures each once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np

import keras2torch_birnn as k2t
from benchmarks.convert import K2T, measure
from benchmarks.run import RESULTS, facts_of
from benchmarks.tasks import ROOT, TRAINED, find_architecture
from keras2torch_birnn.golden import origin

PAGE = ROOT / "docs" / "scale.md"
# Of ids, as the lines of the page take them: a table of lists.
MODEL, FIXTURE = "shakkala", "mask_stack_bi_dense"
PARTS = 8
DASK = """
import dask.dataframe
from predicting import predict

if __name__ == "__main__":
    with dask.config.set(scheduler="processes", num_workers={processes}):
{lines}
"""
SPARK = """
import os
import sys

from predicting import predict
from pyspark.sql import SparkSession

os.environ |= {{"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}}
made = SparkSession.builder.master("local[{processes}]")
spark = made.config("spark.ui.enabled", False).getOrCreate()
spark.sparkContext.addPyFile("predicting.py")
{lines}
spark.stop()
"""


def lines_with(word: str) -> str:
    """Return the one block of Python on the page that has this word."""
    blocks = re.findall(r"^```py(?:thon)?\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    (found,) = (str(one) for one in blocks if word in one)
    return found


def _script(text: str, word: str, processes: int, before: str = "") -> list[str]:
    """Write a script with the lines of the page that have this word; return its arguments."""
    script = Path(f"run_{processes}.py")
    script.write_text(text.format(processes=processes, lines=indent(lines_with(word), before)))
    return [str(script)]


def _convert(processes: int) -> list[str]:
    return ["-c", K2T, "convert", "models", "--out-dir", "outputs", "--jobs", str(processes)]


def _ray(processes: int) -> list[str]:
    script = str(ROOT / "examples" / "predict_many.py")
    return [script, "model.pt", "shards", "outputs", "--workers", str(processes)]


# Name -> the packages that it needs, and what makes the arguments of Python.
WORK: Mapping[str, tuple[str, Callable[[int], list[str]]]] = {
    "convert": ("", _convert),
    "dask": ("dask pandas pyarrow", partial(_script, DASK, "dask.", before=" " * 8)),
    "ray": ("ray", _ray),
    "spark": ("pyspark pandas pyarrow", partial(_script, SPARK, "spark.")),
}


def _write_inputs(path: Path, config: str | None, steps: int, rows: int) -> None:
    """Write, in this folder, copies of the model, the converted one, and parts of drawn inputs."""
    for name in ("models", "shards", "inputs"):
        Path(name).mkdir()
    for number in range(PARTS):
        shutil.copyfile(path, Path("models") / f"{number}{path.suffix}")
    model = k2t.convert(path, config=config and path.with_name(config))
    k2t.save(model, "model.pt")
    largest = int(origin(model).golden.inputs[0].max())
    ids = np.random.default_rng(0).integers(1, largest + 1, (PARTS, -(-rows // PARTS), steps))
    for number, part in enumerate(ids):
        np.save(f"shards/{number}.npy", part)
        if find_spec("pandas") and find_spec("pyarrow"):
            pandas: Any = import_module("pandas")
            table = pandas.DataFrame({"tokens": [*part]})
            table.to_parquet(f"inputs/part.{number}.parquet")
    Path("predicting.py").write_text(lines_with("def predict"))


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write the times."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m benchmarks scale", description=about)
    parser.add_argument("--real", type=Path, help="folder of the trained models")
    parser.add_argument("--only", nargs="+", choices=[*WORK], default=[*WORK])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rows", type=int, default=512, help="of the inputs, in 8 parts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS / "scale.json")
    options = parser.parse_args(arguments)
    path, steps, config = find_architecture(FIXTURE)
    if options.real:
        ((name, steps, config),) = (row for row in TRAINED if row[0].startswith(MODEL))
        path = options.real.absolute() / name
    head = {**facts_of(1, options.rounds), "model": path.name, "inputs": [options.rows, steps]}
    missing = {
        name: [one for one in WORK[name][0].split() if find_spec(one) is None]
        for name in options.only
    }
    for name, some in missing.items():
        if some:
            print(f"{name} is left out: it needs {', '.join(some)}")
    out = options.json.absolute()
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    there = [name for name, some in missing.items() if not some]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        _write_inputs(path, config, steps, options.rows)
        for _, name, count in product(range(options.rounds), there, options.processes):
            if name == "ray" and count > (os.cpu_count() or 1):
                continue  # it starts no more workers than there are cores
            shutil.rmtree("outputs", ignore_errors=True)
            took = measure([sys.executable, *WORK[name][1](count)])["seconds"]
            row = {"work": name, "processes": count, "seconds": []}
            rows.setdefault((name, count), row)["seconds"].append(round(took, 2))
            out.write_text(json.dumps({**head, "rows": [*rows.values()]}, indent=1) + "\n", "utf-8")
            print(f"{name}, {count} processes: {took:.1f} s", flush=True)
        os.chdir(ROOT)
