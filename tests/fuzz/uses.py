"""Everything that k2t does with a changed file of Keras, of every container.

Files are well written and odd (``rearranged``, ``tensorflow``). One is inspected, converted,
verified, exported, mapped, trained on and written back, by the functions and by the commands. No
step may end in an exception that is not k2t's, or call itself a bug; what is printed holds no
control, and JSON no number that is not finite.
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from commands import FIXTURES, k2t
from compiled_fixtures import ROWS, unpack, unpack_checkpoint
from torch import nn

import keras2torch_birnn as birnn
from fuzz import tensorflow
from fuzz.outs import MODELS, run_here, use
from fuzz.rearranged import rearranged
from fuzz.seeds import Seed, seeds
from fuzz.targets import Tally, attempt
from keras2torch_birnn.exporting import exporter

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


@dataclass(frozen=True)
class Whole:
    """A good model: ``change`` makes the files of a mutant and writes them into a folder.

    ``write`` writes the undamaged one.
    """

    name: str
    change: Callable[[Path, Random], tuple[Path, Path | None]]
    write: Callable[[Path], tuple[Path, Path | None]]

    @cached_property
    def model(self) -> nn.Module:
        """The model of the undamaged file, which is written back into mutants."""
        with TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path, config = self.write(Path(folder))
            return birnn.convert(path, config=config)


def _of_seed(seed: Seed) -> Callable[[Path, Random], tuple[Path, Path | None]]:
    names = (*seed.victims, *((seed.config,) if seed.config else ()))

    def change(folder: Path, random: Random) -> tuple[Path, Path | None]:
        victim = random.choice(names)
        return seed.write(folder, {victim: rearranged(seed.files[victim], random)})

    return change


def _of_tensorflow(
    model: tensorflow.Model,
) -> Callable[[Path, Random], tuple[Path, Path | None]]:
    return lambda folder, random: model.write(folder, tensorflow.changed(model, random))


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


@cache
def wholes() -> tuple[Whole, ...]:
    """Return all of them."""
    one_file = (Seed(n, {"m": (FIXTURES / n).read_bytes()}, "m", ("m",)) for n in MODELS)
    compiled = map(_compiled, _COMPILED)
    return (
        *(
            Whole(seed.name, _of_seed(seed), partial(seed.write, changed={}))
            for seed in (*seeds(), *one_file, *compiled)
        ),
        *(
            Whole(one.name, _of_tensorflow(one), partial(one.write, files=one.files))
            for one in tensorflow.models()
        ),
    )


def try_file(
    one: Whole, folder: Path, random: Random, tally: Tally, label: Mapping[str, Any]
) -> None:
    """Convert one mutant, and do with it all that k2t does; what should not happen is a finding."""
    path, config = one.change(folder, random)
    made = folder / "made"
    made.mkdir()
    outcomes = Tally(findings=tally.findings)
    model = attempt(partial(birnn.convert, path, config=config), tally, label, seconds=SECONDS)
    steps = list(_steps(path, config, one, model, made).items())
    taken = sorted(random.sample(range(len(steps)), STEPS))
    with mock.patch.object(exporter, "run_exported", run_here):
        for step, work in (steps[at] for at in taken):
            attempt(partial(use, work), outcomes, {**label, "step": step}, seconds=SECONDS)
    tally.compared.update({f"then {outcome}": n for outcome, n in outcomes.outcomes.items()})
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _steps(
    path: Path, config: Path | None, one: Whole, model: Any, made: Path
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
        "write back another": partial(
            _write, one.model, path, config, made / f"other{path.suffix}"
        ),
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
