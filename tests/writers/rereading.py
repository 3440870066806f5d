"""Script: the Keras that wrote a fixture loads what was written back into it, and predicts.

    python rereading.py PYTHON PACKAGE LABEL [PATTERN [EVERY]]

PYTHON has the Keras of LABEL (``keras-2.2.4``, ``tf.keras-2.15.0``), which is imported as PACKAGE;
for models of TensorFlow.js LABEL is ``tensorflowjs-4.22.0`` and PACKAGE ``tensorflowjs``; or LABEL
is ``tfjs-4.22.0`` and PACKAGE ``node``, which has that TensorFlow.js in NODE_PATH. Each fixture of
LABEL that its Keras can read (of those that match PATTERN every 7th, if EVERY is 7) is converted,
all its weights are changed, and they are written back; what torch computes with them is compared
with what that Keras computes. Run it in the repository, with ``tests/support`` in PYTHONPATH. Ends
with 1 if anything is wrong.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import campaign
import keras_predicts
import numpy as np
import torch
from compiled_fixtures import COMPILED, ROWS
from parsing_here import parsing_here
from specs import FIXTURES
from tensorflow_fixtures import ENTRIES, TENSORFLOW
from torch import Tensor
from trained import train

import keras2torch_birnn as k2t
from keras2torch_birnn.golden import origin
from keras2torch_birnn.running import run

AT_ONCE = 50  # models that one process of Keras loads


class Case(NamedTuple):
    """A fixture; ``inputs``: how its recorded inputs are called in ``npz``."""

    name: str
    floats: str
    npz: Path
    inputs: str


def cases_of(label: str, pattern: str) -> Iterator[Case]:
    """Yield fixtures that this Keras reads; it wants as many steps as it recorded."""
    plain = json.loads((FIXTURES / "manifest.json").read_text("utf-8"))["files"]
    found = {row["file"]: (row["label"], row, FIXTURES, "in_{}") for row in plain}
    for name, row in ENTRIES.items():
        found[name] = row["writer"], row, TENSORFLOW, "x{}"
    for name in (name for name in campaign.fixtures() if name in found):
        of, row, folder, inputs = found[name]
        on_cpu = not any("cudnn" in word for word in [name, *row.get("tags", ())])
        if of == label and is_read(row) and on_cpu and not row.get("tolerance"):  # half precision
            if re.search(pattern, name):
                yield Case(name, "float32", folder / row["npz"], inputs)
    for row in ROWS.values():
        name = f"compiled/{row['file']}"
        if row["label"] == label and is_read(row) and re.search(pattern, name):
            yield Case(name, row["floats"], COMPILED / row["npz"], "x{}_0")


def is_read(row: Mapping[str, Any]) -> bool:
    """Tell whether its Keras reads a fixture, or whether nobody has tried that yet.

    Where it only trains on otherwise from its own file, it predicts the same.
    """
    if row.get("reloads") is None:
        return row.get("expect") == "converts"
    return bool(row["reloads"]) or "reload_difference" in row


def write(case: Case, out: Path) -> str:
    """Train a fixture, write it back, note what torch computes; return what hindered it, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        source, config, base = campaign.opened(case.name, Path(folder))
        try:
            model = train(k2t.convert(source, config=config, dtype=case.floats))
        except k2t.K2TError:
            return "not converted"
        out.mkdir()
        ending = "" if base.is_dir() else base.name[base.name.index(".") :]
        try:
            k2t.write_back(model, source, out / f"model{ending}", config=config)
        except k2t.WeightMismatchError as error:
            shutil.rmtree(out)
            named = any(words in str(error) for words in campaign.EXPECTED)
            return "refused by name" if named else f"REFUSED {error}"
        if config is not None:
            shutil.copy(config, out / "config.json")
    inputs = read_inputs(case, len(origin(model).golden.inputs))
    arrays = {f"in_{i}": x.numpy() for i, x in enumerate(inputs)}
    arrays |= {f"out_{i}": y.numpy() for i, y in enumerate(run(model, inputs))}
    np.savez(out / "case.npz", **arrays)
    return ""


def read_inputs(case: Case, count: int) -> tuple[Tensor, ...]:
    """Return the inputs of the first recorded call."""
    with np.load(case.npz) as data:
        found = [data[case.inputs.format(i)] for i in range(count)]
    floats = [x.astype(case.floats) if x.dtype.kind == "f" else x for x in found]
    return tuple(map(torch.from_numpy, floats))


def check(python: str, package: str, cases: Sequence[Case], floats: str) -> Counter[str]:
    """Write some fixtures back and let Keras predict; print what is wrong."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            with parsing_here():
                hindered = write(case, Path(folder, case.name.replace("/", "--")))
            if hindered.startswith("REFUSED"):
                print(case.name, hindered)
            if hindered:
                found["REFUSED" if hindered.startswith("REFUSED") else hindered] += 1
        done = subprocess.run(
            [python, keras_predicts.__file__, package, folder, floats],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "TF_USE_LEGACY_KERAS": "0", "PYTHONPATH": ""},
        )
        wanted = {one.name for one in Path(folder).iterdir()}
    for line in done.stdout.splitlines():
        name, _, error = line.partition(" ")
        if name in wanted:
            wanted.remove(name)
            right = float(error.split()[0]) <= 1
            found[f"{floats}: equal" if right else "WRONG"] += 1
            if not right:
                print(line, flush=True)
    for name in wanted:
        print(name, "Keras ended before it", done.returncode)
        found["WRONG"] += 1
    return found


def main() -> int:
    """Print how often what happened."""
    python, package, label, *options = sys.argv[1:]
    pattern, step = [*options, *("", "1")[len(options) :]]
    total: Counter[str] = Counter()
    every = list(cases_of(label, pattern))[:: int(step)]
    for floats in keras_predicts.ERRORS:
        cases = [case for case in every if case.floats == floats]
        for first in range(0, len(cases), AT_ONCE):
            total += check(python, package, cases[first : first + AT_ONCE], floats)
    print(label, dict(total))
    return int(total["WRONG"] + total["REFUSED"] > 0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
