"""Models for ``check_exports.py``: every fixture, other files, and batches of several sizes."""

from __future__ import annotations

import json
import random
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import plugin_files
import source_parity
from fixture_files import FIXTURES
from parsing_here import parsing_here

from keras2torch_birnn.building import build
from keras2torch_birnn.comparison.tolerance import EXACT, Tolerance
from keras2torch_birnn.exporting.exporter import copy_structure
from keras2torch_birnn.exporting.settled_sizes import settle_sizes
from keras2torch_birnn.exporting.source.write_source import write_source
from keras2torch_birnn.exporting.torch_program import as_declared, draw_example
from keras2torch_birnn.golden import GOLDEN_STEPS
from keras2torch_birnn.plugins import load_plugins
from keras2torch_birnn.plugins.checks import complete_shapes
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference.rounding import differences
from keras2torch_birnn.reference.sample_inputs import (
    draw_inputs,
    free_steps,
    input_facts,
)
from keras2torch_birnn.running import copy_in_float64, move_inputs, run
from keras2torch_birnn.schema.stored import model_from_json
from keras2torch_birnn.spec import NO_CUT, Array, Cut, ModelSpec

ORACLE = Tolerance(5e-5, 0.0, 0.0)
# Sizes other than the file's: rows, and steps. One length has the parity of T, one has the other:
# "same" padding of strided layers differs.
OTHER_LENGTHS: tuple[tuple[str, int, Callable[[int], int]], ...] = (
    ("3, T + 4", 3, lambda steps: steps + 4),
    ("4, T + 5", 4, lambda steps: steps + 5),
    ("2, 1", 2, lambda _: 1),
)


@dataclass(frozen=True)
class Case:
    """A file, and how to read it.

    path: of the file or, where ``inside`` names the model, of the archive that has it. config: of
    the architecture, likewise. plugin: which its layers need.
    """

    name: str
    path: Path
    config: str | None = None
    inside: str = ""
    plugin: str = ""
    cut: Cut = NO_CUT
    oracle: Path | None = None

    def title(self) -> str:
        """Return what is the same for the files of one case by several versions of Keras."""
        return f"{self.name.split('/')[0]}/{Path(self.name).name.split('.')[0]}"


# ---- which files --------------------------------------------------------------------------------


def fixtures() -> list[Case]:
    """Return every fixture of a model that converts; one of each title first, then the others."""
    found = [*_of_keras(), *_of_tensorflow(), *_of_plugins(), *_cut(), *_of_training()]
    random.Random(0).shuffle(found)
    first = {case.title(): case for case in reversed(found)}
    return [*first.values(), *(case for case in found if first[case.title()] is not case)]


def part(cases: Iterable[Case], number: int, parts: int) -> list[Case]:
    """Return one of several parts; all files of a title are in the same one."""
    return [case for case in cases if zlib.crc32(case.title().encode()) % parts == number]


def _rows(folder: str) -> list[Mapping[str, Any]]:
    text = (FIXTURES / folder / "manifest.json").read_text("utf-8")
    rows: Any = json.loads(text)
    return list(rows["files"] if isinstance(rows, dict) else rows)


def _of_keras() -> Iterator[Case]:
    for row in _rows("."):
        config = row["config"] and str(FIXTURES / row["config"])
        yield Case(f"keras/{row['file']}", FIXTURES / row["file"], config)


def _of_tensorflow() -> Iterator[Case]:
    for row in _rows("tensorflow"):
        if row["expect"] in ("converts", "plugin"):
            plugin = str(plugin_files.USERS) if row["expect"] == "plugin" else ""
            path = FIXTURES / "tensorflow" / row["file"]
            yield Case(f"tensorflow/{row['file']}", path, row["config"], row["model"], plugin)


def _of_plugins() -> Iterator[Case]:
    folder = FIXTURES / "plugins"
    for row in _rows("plugins"):
        config = row["config"] and str(folder / row["config"])
        plugin = plugin_files.plugin_of(row["file"])
        yield Case(f"plugins/{row['file']}", folder / row["file"], config, plugin=plugin)


def _cut() -> Iterator[Case]:
    for row in _rows("cut"):
        path = FIXTURES / "cut" / row["file"]
        config = row["config"] or None
        if config and not row["model"]:
            config = str(path.parent / config)
        cut = Cut(tuple(row["cuts"][0]["from"]), tuple(row["cuts"][0]["to"]))
        yield Case(f"cut/{row['file']}", path, config, row["model"], cut=cut)


def _of_training() -> Iterator[Case]:
    for row in _rows("training"):
        yield Case(f"training/{row['before']}", FIXTURES / "training" / row["before"])


def others(files: Iterable[str], oracles: Path | None) -> list[Case]:
    """Return models by path: FILE or FILE,CONFIG; with the oracle of the same name."""
    found = []
    for given in files:
        file, _, config = given.partition(",")
        path = Path(file)
        oracle = oracles / f"{path.name}.npz" if oracles else None
        oracle = oracle if oracle and oracle.exists() else None
        found.append(Case(f"real/{path.name}", path, config or None, oracle=oracle))
    return found


# ---- models -------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """A model; its spec as the file declares it, and with every axis of time free that can be."""

    model: fx.GraphModule
    spec: ModelSpec
    free: ModelSpec


def read(case: Case) -> Subject:
    """Read a model and build it."""
    with opened(case) as spec:
        return make_subject(spec)


@contextmanager
def opened(case: Case) -> Iterator[ModelSpec]:
    """Read a model; its weights can be read until the end of the context."""
    with _unpacked(case) as (path, config), parsing_here():
        plugin_files.unregister_all()
        load_plugins([case.plugin] if case.plugin else [])
        yield complete_shapes(read_model(path, config=config, cut=case.cut))


def make_subject(spec: ModelSpec) -> Subject:
    """Build a model that was read."""
    model = build(spec)
    spec = as_stored(spec)
    example = draw_example(model, spec, GOLDEN_STEPS, seed=1)
    return Subject(model, spec, settle_sizes(model, free_steps(spec), example, spec)[0])


def as_stored(spec: ModelSpec) -> ModelSpec:
    """Return a model as an export has it."""
    return model_from_json(json.loads(spec.to_json()))


@contextmanager
def _unpacked(case: Case) -> Iterator[tuple[Path, Path | None]]:
    """Unpack an archive for a while; return the paths of model and architecture."""
    if not case.inside:
        yield case.path, Path(case.config) if case.config else None
        return
    with TemporaryDirectory() as name, tarfile.open(case.path) as archive:
        folder = Path(name)
        archive.extractall(folder, filter="data")
        yield folder / case.inside, folder / case.config if case.config else None


# ---- batches ------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Inputs in the file's dtypes, what the model makes of them, and their rounding there.

    size: in words. limit: what is allowed instead of the tolerance of float32.
    """

    size: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    roundings: tuple[float, ...]
    limit: Tolerance | None = None


def batches(case: Case, subject: Subject) -> Iterator[Batch]:
    """Run the model at every size that it takes."""
    exact = copy_in_float64(subject.model)
    for size, drawn in _draw(subject):
        given = as_declared(subject.model, subject.spec, drawn)
        single = _outputs(subject.model, given)
        if single is not None:
            double = _outputs(exact, given)
            rounding = differences(single, double) if double is not None else (0.0,) * len(single)
            yield Batch(size, tuple(x.numpy() for x in given), single, rounding)
    if case.oracle:
        with np.load(case.oracle) as data:
            for name in data.files:
                if name.endswith("__in"):
                    outputs = data[f"{name.removesuffix('__in')}__out"]
                    x = as_declared(subject.model, subject.spec, (data[name],))[0].numpy()
                    yield Batch("oracle", (x,), (outputs,), (0.0,), ORACLE)


def _outputs(model: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[Array, ...] | None:
    try:
        return tuple(y.numpy() for y in run(model, given))
    except (ArithmeticError, RuntimeError, ValueError, IndexError):
        return None  # the model has no such size


def in_float64(subject: Subject) -> Subject:
    """Return the model with all tensors in float64."""
    return subject._replace(model=copy_structure(subject.model).double())


def gradients(case: Case, subject: Subject) -> Iterator[Batch]:
    """Compute the gradients of training on the file's own size, where nothing is drawn at random.

    They are the outputs of the batch, in the order of the parameters' names in exported source. In
    float64: in float32 an input of a hard_sigmoid within rounding of its kink has either slope.
    """
    if source_parity.draws(subject.spec):
        return
    drawn = _draw_own(subject)
    exact = in_float64(subject).model
    names = write_source(copy_structure(exact), subject.free).names
    found = source_parity.gradients(exact, drawn)
    given = move_inputs(exact, tuple(map(torch.from_numpy, drawn)))
    outputs = tuple(found[key] for key in sorted(found, key=lambda key: names[key]))
    if outputs:
        zeros = (0.0,) * len(outputs)
        yield Batch("own", tuple(x.numpy() for x in given), outputs, zeros, EXACT)


def _draw(subject: Subject) -> Iterator[tuple[str, tuple[Array, ...]]]:
    """Draw inputs of every size: rows are full, padded right and left, gappy and empty."""
    yield "own", _draw_own(subject)
    free = [fact.shape for fact in input_facts(subject.free)]
    if any(shape is not None and shape[:1] not in ((None,), ()) for shape in free):
        return
    steps = _own_steps(subject)
    five = _draw_five(subject.spec, steps)
    yield "5, T", five
    for row in range(5):
        yield "1, T", _rows_of(five, slice(row, row + 1))
    if all(shape is not None and None not in shape[1:] for shape in free):
        return
    for size, rows, length in OTHER_LENGTHS:
        drawn = _draw_five(subject.free, length(steps))
        yield size, _rows_of(drawn, slice(rows))
        yield size, _rows_of(drawn, slice(-rows, None))


def _own_steps(subject: Subject) -> int:
    shapes = [fact.shape for spec in (subject.spec, subject.free) for fact in input_facts(spec)]
    declared = [shape[1] for shape in shapes if shape and len(shape) > 1 and shape[1]]
    return declared[0] if declared else 11


def _draw_own(subject: Subject) -> tuple[Array, ...]:
    """Draw inputs of the file's own sizes; five rows if an operation of the model needs so many."""
    steps = _own_steps(subject)
    drawn = draw_inputs(subject.spec, steps=steps, seed=1)
    given = move_inputs(subject.model, tuple(map(torch.from_numpy, drawn)))
    return _draw_five(subject.spec, steps) if _outputs(subject.model, given) is None else drawn


def _draw_five(spec: ModelSpec, steps: int) -> tuple[Array, ...]:
    pairs = zip(*(draw_inputs(spec, steps=steps, seed=seed) for seed in (1, 2)), strict=True)
    return tuple(np.concatenate((a, b))[:5] if a.ndim else a for a, b in pairs)


def _rows_of(drawn: tuple[Array, ...], rows: slice) -> tuple[Array, ...]:
    return tuple(x[rows] if x.ndim else x for x in drawn)
