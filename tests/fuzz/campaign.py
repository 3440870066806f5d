"""Run many mutants and write down what came of them.

    cd tests && python -m fuzz.campaign containers --count 300000 --out /tmp/containers.json

Each subject is a module of this folder: ``containers`` (damaged files of every container),
``architectures`` (changed config trees and graphs), ``answers`` (changed answers of the HDF5
parser's process), ``outs`` (changed files that k2t wrote: loaded, checked, exported, written back,
compared), ``uses`` (well-formed files of every container that do not fit together, with code and
controls in their names: all that k2t does with them, with the source writer). By the same runner,
``faults``: saving a model while the disk, the system or the user fail.
Mutant ``i`` of a subject depends on nothing but ``--seed`` and ``i``. Results are written after
every batch; an unfinished run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

from fuzz.runs import Mutant, Tally, guard

# Subject -> mutants in one process
SUBJECTS = {
    "containers": 1000,
    "architectures": 3000,
    "answers": 10_000,
    "outs": 1000,
    "uses": 100,
    "faults": 1000,
}
# New address space that mutants may take: the compilers behind exports reserve much of it.
MEMORY = {"outs": 4 << 30}
# One mutant can hold the machine for as long as the parser's child may compute.
BATCH_SECONDS = 1800


def run_batch(kind: str, seed: int, numbers: range) -> dict[str, Any]:
    """Run the mutants ``numbers`` in this process; the tally as JSON data."""
    tally = Tally()
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="k2t-fuzz-", dir=memory if memory.is_dir() else None))
    folder = root / "mutant"
    (root / "seeds").mkdir()
    try:
        with import_module(f"fuzz.{kind}").opened(root / "seeds", tally) as try_one:
            if kind == "uses":  # an optimizer's first step imports it, and it takes memory
                import_module("torch._dynamo")
            guard(MEMORY.get(kind, 1 << 30))
            gc.freeze()
            for number in numbers:
                folder.mkdir()
                try_one(Mutant(number, Random(f"{kind} {seed} {number}"), folder, tally, {}))
                shutil.rmtree(folder)
    finally:
        shutil.rmtree(root)
    return tally.to_dict()


def _in_a_process(kind: str, seed: int, first: int, count: int) -> dict[str, Any]:
    """Run one batch in a process of its own, so that a crash is noticed."""
    code = "from fuzz.campaign import batch_main; batch_main()"
    command = [sys.executable, "-c", code, kind, str(seed), str(first), str(count)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BATCH_SECONDS)
        if done.returncode == 0:
            return dict(json.loads(done.stdout.splitlines()[-1]))
        ended = f"ended with {done.returncode}: {done.stderr.strip()[-300:]}"
    except subprocess.TimeoutExpired:
        ended = f"did not end in {BATCH_SECONDS} s"
    where = f"mutants {first} to {first + count - 1}"
    finding = {"mutant": first, "error": f"{where}: the process {ended}"}
    return {"outcomes": {"CRASHED": 1}, "compared": {}, "findings": [finding]}


def batch_main() -> None:
    """The entry of a batch's process."""
    kind, seed, first, count = sys.argv[1], *map(int, sys.argv[2:])
    code = 1
    try:
        print(json.dumps(run_batch(kind, seed, range(first, first + count))), flush=True)
        code = 0
    except Exception:
        traceback.print_exc()
    os._exit(code)  # h5py has seen damaged files: no clean-up through it


def main() -> None:
    """Run until ``--count`` mutants are done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=SUBJECTS)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commit", default="not given")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    total: dict[str, Any] = {
        "kind": given.kind,
        "seed": given.seed,
        "commit": given.commit,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "system": f"{platform.system()} {platform.machine()}",
        "mutants": 0,
        "seconds": 0,
        "findings": [],
    }
    if given.out.exists():
        total = json.loads(given.out.read_text(encoding="utf-8"))
        assert (total["kind"], total["seed"]) == (given.kind, given.seed)
    while total["mutants"] < given.count:
        count = min(SUBJECTS[given.kind], given.count - total["mutants"])
        started = time.monotonic()
        batch = _in_a_process(given.kind, given.seed, total["mutants"], count)
        for key in ("outcomes", "compared"):
            total[key] = dict(sorted((Counter(total.get(key, {})) + Counter(batch[key])).items()))
        total["findings"] = (total["findings"] + batch["findings"])[:200]
        total["mutants"] += count
        total["seconds"] = round(total["seconds"] + time.monotonic() - started)
        temporary = given.out.with_suffix(".part")
        temporary.write_text(json.dumps(total, indent=1) + "\n", encoding="utf-8")
        temporary.replace(given.out)


if __name__ == "__main__":
    main()
