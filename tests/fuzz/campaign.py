"""Run many mutants and write down what came of them.

    cd tests && python -m fuzz.campaign bytes --count 300000 --out /tmp/bytes.json

Kinds: ``bytes`` (damaged copies of every seed), ``structured`` (well-formed files with odd
content; archives with right checksums), ``pointers`` (HDF5 structures that point at each other
in other ways), ``architectures`` (changed config trees and graphs), ``answers`` (changed answers
of the HDF5 parser's process), ``convert`` (changed architectures, all the way to a torch model),
``tensorflow`` (SavedModels, checkpoints and TF.js models), ``cut`` (parts of changed models),
``outs`` (changed files that k2t wrote: loaded, checked, exported, written back, compared),
``uses`` (well-formed files of every container whose lists, names, arrays and JSON do not fit each
other: all that k2t does with them).
Mutant ``i`` of a kind depends on nothing but ``--seed`` and ``i``. Results are written after every
batch; an unfinished run goes on where it stopped.
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
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

KINDS = (
    "bytes",
    "structured",
    "pointers",
    "architectures",
    "answers",
    "convert",
    "tensorflow",
    "outs",
    "uses",
)
BATCH = dict(zip(KINDS, (1000, 1000, 1000, 5000, 10_000, 500, 2000, 1000, 100), strict=True))
OF_FILES = ("bytes", "structured", "pointers")
PARSER_CPU_SECONDS = 1
COMPARED_TOGETHER = 40
# New address space that mutants may take: the compilers behind exports reserve much of it.
MEMORY = {"outs": 4 << 30}
# One mutant can hold the machine for as long as the parser's child may compute.
BATCH_SECONDS = 1800


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder in memory, if the machine has one."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="k2t-fuzz-", dir=memory if memory.is_dir() else None))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def run_batch(kind: str, seed: int, numbers: range) -> dict[str, Any]:
    """Run the mutants ``numbers`` in this process; the tally as JSON data."""
    from fuzz import targets

    tally = targets.Tally()
    work = _files if kind in OF_FILES else _OTHERS.get(kind, _trees)
    if kind == "uses":  # an optimizer's first step imports it, and it takes memory
        import_module("torch._dynamo")
    targets.guard(MEMORY.get(kind, 1 << 30))
    work(kind, seed, numbers, tally)
    return tally.to_dict()


def _files(kind: str, seed: int, numbers: range, tally: Any) -> None:
    from fuzz import forked, mutants, structured, targets
    from fuzz.seeds import seeds

    forked.install(PARSER_CPU_SECONDS)
    recorder = targets.Recorder()
    everything = seeds()
    undamaged: dict[str, dict[str, Any]] = {}
    taken: list[targets.Taken] = []
    gc.freeze()
    with _folder() as folder:
        for one in everything:
            read = targets.read_file(*one.write(folder, {}), recorder, targets.Tally(), {})
            assert read or not one.victims, one.name
            undamaged[one.name] = dict(read)
        for number in numbers:
            random = Random(f"{kind} {seed} {number}")
            one = everything[number % len(everything)]
            victim = random.choice(one.victims)
            data = one.files[victim]
            if kind == "bytes":
                changed = mutants.damaged(data, random)
            elif kind == "pointers":
                changed = mutants.crossed(data, random)
            elif data.startswith(b"PK"):
                changed = mutants.rezipped(_odd_inside(data, random), random)
            elif data.startswith(b"{"):
                changed = mutants.as_text(
                    mutants.changed_tree(json.loads(data), random), random
                ).encode("utf-8", "surrogatepass")
            else:
                changed = structured.odd_copy(data, random)
            label = {"mutant": number, "seed file": one.name}
            path, config = one.write(folder, {victim: changed})
            read = targets.read_file(path, config, recorder, tally, label)
            if read:
                files = {n: b for n, b in one.files.items() if n in one.victims} | {victim: changed}
                taken.append(targets.Taken(list(read), files, undamaged[one.name], label))
            if len(taken) == COMPARED_TOGETHER or number == numbers[-1]:
                targets.compare(taken, tally)
                taken.clear()


def _tensorflow(kind: str, seed: int, numbers: range, tally: Any) -> None:
    from fuzz import targets
    from fuzz.tensorflow import changed, independent_tfjs, models

    recorder = targets.Recorder()
    everything = models()
    undamaged: dict[str, dict[str, Any]] = {}
    gc.freeze()
    with _folder() as folder:
        for one in everything:
            read = targets.read_file(*one.write(folder, one.files), recorder, targets.Tally(), {})
            assert read, one.name
            undamaged[one.name] = dict(read)
            shutil.rmtree(folder)
            folder.mkdir()
        for number in numbers:
            random = Random(f"{kind} {seed} {number}")
            one = everything[number % len(everything)]
            label = {"mutant": number, "seed file": one.name}
            files = changed(one, random)
            path, config = one.write(folder, files)
            for name, values in targets.read_file(path, config, recorder, tally, label):
                wanted = undamaged[one.name].get(name)
                if "model.json" in files:
                    wanted = independent_tfjs(files, name)
                    wanted = None if wanted is None else wanted.astype(values.dtype)
                equal = targets.same(values, wanted)
                tally.compared["equal" if equal else "DIFFERENT"] += 1
                if not equal:
                    tally.findings.append({**label, "error": f"differs: {name}"})
            shutil.rmtree(folder)
            folder.mkdir()


def _outs(kind: str, seed: int, numbers: range, tally: Any) -> None:
    import torch

    from fuzz.outs import honest, try_out

    torch.set_num_threads(1)
    everything = honest()
    gc.freeze()
    with _folder() as folder:
        for number in numbers:
            random = Random(f"{kind} {seed} {number}")
            one = everything[number % len(everything)]
            label = {"mutant": number, "seed file": "/".join(one.source.parts[-2:])}
            try_out(number, one, folder, random, tally, label)


def _uses(kind: str, seed: int, numbers: range, tally: Any) -> None:
    import torch
    from parsing_here import parsing_here

    from fuzz.uses import try_file, wholes

    torch.set_num_threads(1)
    everything = wholes()
    gc.freeze()
    with _folder() as folder, parsing_here():  # these files cannot harm the HDF5 library
        for number in numbers:
            random = Random(f"{kind} {seed} {number}")
            one = everything[number % len(everything)]
            try_file(one, folder, random, tally, {"mutant": number, "seed file": one.name})


_OTHERS = {"tensorflow": _tensorflow, "outs": _outs, "uses": _uses}


def _odd_inside(data: bytes, random: Random) -> bytes:
    """An archive whose weights are an odd copy, half of the time."""
    import io
    import zipfile

    from fuzz import structured

    if random.random() < 0.5:
        return data
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(sink, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith(".h5"):
                content = structured.odd_copy(content, random)
            new.writestr(info.filename, content)
    return sink.getvalue()


def architecture_files() -> list[Path]:
    """Whole models, small, of every generation; together they hold every class there is."""
    from fuzz.seeds import FIXTURES

    listed = Path(__file__).with_name("architectures.txt").read_text(encoding="utf-8")
    return [FIXTURES / name for name in listed.split()]


def _trees(kind: str, seed: int, numbers: range, tally: Any) -> None:
    from fuzz import answers, forked, mutants, targets

    forked.install(3600)  # good files, open for the whole batch
    if kind == "answers":
        talk = answers.Answers()
        for number in numbers:
            random = Random(f"{kind} {seed} {number}")
            targets.attempt(partial(talk.hear, random), tally, {"mutant": number})
        talk.close()
        return
    if kind == "convert":
        import torch

        from keras2torch_birnn.conversion import build_model

        torch.set_num_threads(1)
    models = targets.Architectures(architecture_files())
    for number in numbers:
        random = Random(f"{kind} {seed} {number}")
        one = random.randrange(len(models.trees))
        change = mutants.rewired if random.random() < 0.3 else mutants.changed_tree
        text = mutants.as_text(change(models.trees[one], random), random)
        label = {"mutant": number, "seed file": models.names[one]}

        def work(one: int = one, text: str = text) -> Any:
            spec = models.survey(one, text)
            return build_model(spec) if kind == "convert" else spec

        targets.attempt(work, tally, label)
    models.close()


# ---- many batches -------------------------------------------------------------------------------


def about(kind: str, seed: int, commit: str) -> dict[str, Any]:
    """Return the facts needed to run it again."""
    import h5py
    import numpy

    from fuzz.seeds import seeds

    names = [s.name for s in seeds()] if kind in OF_FILES else []
    if kind == "tensorflow":
        from fuzz.tensorflow import models

        names = [model.name for model in models()]
    if kind == "outs":
        from fuzz.outs import MODELS, PLUGIN

        names = [*MODELS, "/".join(PLUGIN.parts[-3:])]
    if kind == "uses":
        from fuzz.uses import wholes

        names = [whole.name for whole in wholes()]
    return {
        "kind": kind,
        "seed": seed,
        "commit": commit,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "system": f"{platform.system()} {platform.machine()}",
        "parser_cpu_seconds": PARSER_CPU_SECONDS,
        "seed_files": names or len(architecture_files()),
    }


def _add(total: dict[str, Any], batch: dict[str, Any]) -> None:
    for key in ("outcomes", "parser", "compared"):
        total[key] = dict(sorted((Counter(total.get(key, {})) + Counter(batch[key])).items()))
    total["findings"] = (total.get("findings", []) + batch["findings"])[:200]


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
    return {"outcomes": {"CRASHED": 1}, "parser": {}, "compared": {}, "findings": [finding]}


def batch_main() -> None:
    """The entry of a batch's process."""
    kind, seed, first, count = sys.argv[1], *map(int, sys.argv[2:])
    print(json.dumps(run_batch(kind, seed, range(first, first + count))))
    sys.stdout.flush()
    os._exit(0)  # h5py has seen damaged files: no clean-up through it


def main() -> None:
    """Run until ``--count`` mutants are done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commit", default="not given")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    total: dict[str, Any] = {
        **about(given.kind, given.seed, given.commit),
        "mutants": 0,
        "seconds": 0,
    }
    if given.out.exists():
        total = json.loads(given.out.read_text(encoding="utf-8"))
        assert (total["kind"], total["seed"]) == (given.kind, given.seed)
    while total["mutants"] < given.count:
        count = min(BATCH[given.kind], given.count - total["mutants"])
        started = time.monotonic()
        _add(total, _in_a_process(given.kind, given.seed, total["mutants"], count))
        total["mutants"] += count
        total["seconds"] = round(total["seconds"] + time.monotonic() - started)
        temporary = given.out.with_suffix(".part")
        temporary.write_text(json.dumps(total, indent=1) + "\n", encoding="utf-8")
        temporary.replace(given.out)


if __name__ == "__main__":
    main()
