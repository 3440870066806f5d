"""Everything that k2t does with a changed file of Keras, of every container.

Files are well written and odd. One is inspected, converted, verified, exported, mapped, trained on
and written back, by the functions and by the commands. No step may end in an exception that is not
k2t's, or call itself a bug; what is printed holds no control, and JSON no number that is not
finite. Some have code in the names of layers, which the export to source must not run or write
where it would run.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from commands import k2t
from compiled_fixtures import ROWS, unpack, unpack_checkpoint
from parsing_here import parsing_here
from torch import nn

import keras2torch_birnn as birnn
from fuzz import tensorflow
from fuzz.changes import EVIL, marked
from fuzz.containers import changed_file, changed_seed
from fuzz.hdf5 import odd_copy
from fuzz.runs import Mutant, Tally
from fuzz.seeds import Seed, seeds
from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.exporting import exporter, find_target
from keras2torch_birnn.exporting.runtime_child import shown
from keras2torch_birnn.spec import Array

_COMPILED = (
    "keras-2.2.4/adam.h5",
    "keras-2.3.1/rmsprop.h5",
    "tf.keras-2.4.0/nesterov.h5",
    "tf.keras-2.15.0/legacy_adam.h5",
    "tf.keras-2.15.0/adam.keras",
    "tf.keras-2.15.0/ema.keras",
    "tf.keras-2.15.0/saved_adam.savedmodel",
    "tf.keras-2.15.0/saved_adam.checkpoint",
    "keras-3.15.1/adam.h5",
    "keras-3.15.1/weighted_outputs.keras",
    "keras-3.15.1/constraints.keras",
    "keras-3.15.1/adam_nested.keras",
)
SECONDS = 60.0
# A mutant goes through so many of the steps after ``convert``.
STEPS = 4
# Forms of code as it could stand in generated source.
_CODE = (
    "{}",
    "{} or x",
    "x; {}",
    "x\n{}\n",
    "x)\n        {}\n        (x",
    "'+{}+'",
    '"+{}+"',
    '"""\n{}\n"""',
    "{{{}}}",
    "mask={} #",
    "x={}, y",
    "f\\{}",
)


def write_code(folder: Path, random: Random) -> str:
    """Write code that makes a file, the canary, as it could stand in generated source."""
    touch = f"__import__('pathlib').Path({str(folder / 'canary')!r}).touch()"
    return random.choice(_CODE).replace("{}", touch)


def _marked_files(one: Seed, folder: Path, random: Random) -> dict[str, bytes]:
    """Return the files of a model, texts of which hold code, or commands to the terminal."""
    mark = random.choice((EVIL, write_code(folder, random)))

    def change(data: bytes) -> bytes:
        if b"\x89HDF" in data[:1032]:
            return odd_copy(data, random, well_formed=True, mark=mark)
        if data.startswith(b"PK"):
            sink = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(sink, "w") as new:
                for name in old.namelist():
                    content = old.read(name)
                    new.writestr(name, change(content) if name == "config.json" else content)
            return sink.getvalue()
        if not data.startswith(b"{"):
            return changed_file(data, random, well_formed=True)
        return json.dumps(marked(json.loads(data), mark, random)).encode("utf-8", "surrogatepass")

    texts = [name for name, data in one.files.items() if name == one.config or data[:1] == b"{"]
    victim = random.choice(texts or one.victims)
    return {**one.files, victim: change(one.files[victim])}


def _compiled(name: str) -> Seed:
    row = ROWS[name]
    with TemporaryDirectory() as folder:
        if name.endswith(".checkpoint"):
            prefix, config = unpack_checkpoint(row, Path(folder))
            files = {p.name: p.read_bytes() for p in prefix.parent.iterdir()}
            return Seed(name, files, prefix.name, ("compiled.json",), config.name)
        path = unpack(row["file"], Path(folder))
        if path.is_dir():
            below = [p for p in path.rglob("*") if p.is_file()]
            files = {str(p.relative_to(path)): p.read_bytes() for p in below}
            return Seed(name, files, "", tuple(files))
        return Seed(name, {"m": path.read_bytes()}, "m", ("m",))


@contextmanager
def opened(_folder: Path, _tally: Tally) -> Iterator[Callable[[Mutant], None]]:
    """Yield what does with one mutant all that k2t does."""
    torch.set_num_threads(1)
    everything = [*seeds(), *map(_compiled, _COMPILED), *tensorflow.models()]
    with parsing_here(), exporting_here():  # well-formed files cannot harm the HDF5 library
        yield lambda mutant: _try_one(everything[mutant.number % len(everything)], mutant)


def _try_one(one: Seed, mutant: Mutant) -> None:
    random, folder = mutant.random, mutant.folder
    mutant.about["seed file"] = one.name
    if one.tensorflow or random.random() < 0.6:
        files = changed_seed(one, random, well_formed=True)
    else:
        files = _marked_files(one, folder, random)
    path, config = one.write(folder, files)
    made = folder / "made"
    made.mkdir()
    convert = partial(birnn.convert, path, config=config)
    model = mutant.attempt(partial(use, convert), seconds=SECONDS)
    steps = _steps(path, config, one, model, made)
    for step in random.sample(sorted(steps), STEPS):
        mutant.attempt(partial(use, steps[step]), step=step, seconds=SECONDS)
        if (folder / "canary").exists():
            mutant.find("ran code of a name")


@cache
def _honest(one: Seed) -> nn.Module:
    """The model of the undamaged file, which is written back into mutants."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path, config = one.write(Path(folder), one.files)
        return birnn.convert(path, config=config)


def _steps(
    path: Path, config: Path | None, one: Seed, model: Any, made: Path
) -> Mapping[str, Callable[[], object]]:
    """List the steps after ``convert``; ``model``: what that made of the mutant, or None."""
    given = ("--config", config) if config else ()
    out, page = made / "out.pt", made / "page.html"
    steps: dict[str, Callable[[], object]] = {
        "inspect": partial(_run, "inspect", path, *given),
        "inspect --json": partial(_run, "inspect", path, "--json", *given),
        "weights": partial(birnn.weights, path),
        "map": partial(_run, "map", path, *given),
        "training": partial(_train, path, config),
        "write back another": lambda: _write(_honest(one), path, config, made / "other"),
        "convert": partial(_run, "convert", path, out, *given),
        "convert --json": partial(_run, "convert", path, made / "json.pt", "--json", *given),
    }
    if model is None:
        return steps
    parity = ("verify", path, out, "--against", "reference", *given)
    return steps | {
        "verify": partial(_after, out, model, *parity, "--json"),
        "verify --report": partial(_after, out, model, *parity, "--per-layer", "--report", page),
        "export": partial(_after, out, model, "export", out, made / "model.py"),
        "write back": partial(_write, model, path, config, made / f"new{path.suffix}"),
        "compare": partial(birnn.compare, path, model),
    }


def use(work: Callable[[], Any], files: tuple[Path, ...] = ()) -> Any:
    """Do one thing; a refusal must leave no file.

    Raises:
        AssertionError: it does.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work() or True
    except K2TError:
        left = [file.name for file in files if file.exists()]
        assert not left, f"refused, but there is {left}"
        raise


@contextmanager
def exporting_here() -> Iterator[None]:
    """Run exports in this process, which has imported torch, instead of in a child."""

    def run_here(path: Path, batches: Any) -> tuple[tuple[Array, ...] | str, ...]:
        target = find_target(path).load()
        try:
            session = target.open(path)
            return tuple(tuple(session(batch)) for batch in batches)
        except Exception as error:  # as the child does
            return (shown(error),) * len(batches)

    with mock.patch.object(exporter, "run_exported", run_here):
        yield


def _after(out: Path, model: nn.Module, *arguments: object) -> None:
    """Run a command on OUT."""
    birnn.save(model, out, overwrite=True)
    _run(*arguments)


def _run(*arguments: object) -> None:
    """Run a command; check all that it prints and the page that it writes.

    Raises:
        AssertionError: it is not what it should be.
    """
    run = k2t(*arguments)
    assert run.code != 70 and "a bug in k2t" not in run.err, run.err
    for line in (*run.out.split("\n"), *run.err.split("\n")):
        assert line.isprintable(), f"printed {line[:300]!r}"
        assert not line.startswith("k2t: error: forged"), "a forged line"
    if "--json" in arguments:
        json.loads(run.out, parse_constant=_refuse_constant)
    for page in (Path(str(one)) for one in arguments):
        if page.suffix == ".html" and page.exists():
            text = page.read_text("utf-8")
            assert all(c.isprintable() or c == "\n" for c in text), "controls in the page"
            assert "\nk2t: error: forged" not in text, "a forged line in the page"


def _refuse_constant(text: str) -> None:
    raise AssertionError(f"{text} in JSON")


def _train(path: Path, config: Path | None) -> None:
    state = birnn.training(path, config=config)
    state.penalty()
    state.optimizer.state_dict()
    assert state.loss is not None or state.notes


def _write(model: Any, path: Path, config: Path | None, new: Path) -> None:
    """Write back a model whose weights have changed."""
    changed = copy.deepcopy(model)
    for parameter in changed.parameters():
        parameter.detach().add_(0.125 * parameter.is_floating_point())
    birnn.write_back(changed, path, new, config=config, allow_rounding=True)
