"""The judge of changed code: models of real Keras and what they computed, in milliseconds each."""

from __future__ import annotations

import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from cut_fixtures import ROWS, recorded
from package_source import PACKAGE
from parsing_here import parsing_here
from specs import ENTRIES, FIXTURES, Fixture, fixture, hand_out_copies, read_entry
from torch_runs import outputs_of

from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference import compute
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.spec import Array, Cut, ModelSpec, leaves
from mutations.models import BUILDERS, build_fixture

# Small files that together run each line of the mapping twice, and parts of models: one a line.
CASES = Path(__file__).with_name("cases.txt").read_text("utf-8").splitlines()
ATOL, RTOL = 1e-5, 1e-4
SECONDS = 1  # of the processor; a change that takes longer goes round for ever
READS = ("readers/", "schema/")


def case_of(name: str) -> Fixture | None:
    """Return a fixture, a model that no file holds, or a part; nothing for one that is refused.

    The arrays are the caller's own: changed code may write into them.
    """
    if name in BUILDERS:
        return build_fixture(name)
    return fixture(name) if name in ENTRIES else _part_of(name)


def split_name(name: str) -> tuple[str, Cut | None]:
    """Split the name of a case, such as ``keras-3.0.5/a.keras --from dense``."""
    file, *options = name.split()
    ends: dict[str, list[str]] = {"--from": [], "--to": []}
    for option, layer in zip(options[::2], options[1::2], strict=True):
        ends[option].append(layer)
    return file, Cut(tuple(ends["--from"]), tuple(ends["--to"])) if options else None


def read_case(name: str) -> ModelSpec:
    """Read the file of a case."""
    file, cut = split_name(name)
    if cut is None:
        return read_entry(file)
    with parsing_here():
        return read_model(FIXTURES / file, cut=cut)


@hand_out_copies
def _part_of(name: str) -> Fixture | None:
    """Return a part of a model with what Keras recorded of it, or what the whole computes."""
    file, cut = split_name(name)
    assert cut is not None
    with parsing_here():
        try:
            part = read_model(FIXTURES / file, cut=cut)
        except UsageError:
            return None
        if file.removeprefix("cut/") in ROWS:
            given, wanted = recorded(file.removeprefix("cut/"))
            return Fixture(part, (tuple(given),), (tuple(wanted),))
        whole = read_model(FIXTURES / file)
    inputs = draw_inputs(whole, steps=7, seed=3)
    trace = compute(whole, inputs)
    entering = [
        list(leaves(trace.layers[ref.layer]))[ref.output]
        for name in cut.first
        for call in whole.graph.calls
        if call.layer == name
        for ref in leaves(call.args)
    ]
    ends = [one for name in cut.last for one in leaves(trace.layers[name])]
    outputs = tuple(one.astype(np.float32) for one in ends or trace.outputs)
    return Fixture(part, (tuple(entering or inputs),), (outputs,))


def agrees(name: str, module: str = "") -> bool:
    """Tell whether what a module has a part in gives what real Keras gave.

    Readers and schema: the file is read again, and computed by torch and by the reference.
    """
    case = case_of(name)
    if case is None:
        try:
            read_case(name)
        except UsageError:
            return True
        return False
    reads = module.startswith(READS)
    spec = read_case(name) if reads and name not in BUILDERS else case.spec
    atol = ENTRIES.get(name, {}).get("tolerance", {}).get("atol", ATOL)
    states: dict[str, tuple[Array, ...]] = {}
    model = build(spec)
    ways: list[Callable[[Any], Sequence[Array]]] = [
        lambda inputs: outputs_of(model, *inputs),
        lambda inputs: compute(spec, inputs, states=states).outputs,
    ]
    return all(
        _close(way(inputs), wanted, atol)
        for way in ways[: 1 + reads]
        for inputs, wanted in case.calls()
    ) and (not reads or _has_shapes(spec, case.outputs[0]))


def _close(got: Sequence[Array], wanted: Sequence[Array], atol: float) -> bool:
    return len(got) == len(wanted) and all(
        a.shape == b.shape and np.allclose(a, b, RTOL, atol, equal_nan=True)
        for a, b in zip(got, wanted, strict=True)
    )


def _has_shapes(spec: ModelSpec, outputs: Sequence[Array]) -> bool:
    """Compare the shapes that were inferred with those of what Keras gave."""
    for ref, wanted in zip(leaves(spec.graph.outputs), outputs, strict=True):
        shape = spec.graph.layer(ref.layer).output_shape
        if shape is not None and any(isinstance(size, tuple) for size in shape):
            shape = shape[ref.output]
        if shape is not None and (
            len(shape) != wanted.ndim
            or not all(a in (None, b) for a, b in zip(shape, wanted.shape, strict=True))
        ):
            return False
    return True


def notices(name: str, module: str) -> bool:
    """Tell whether a case finds a change of a module: other numbers, an error, or no end."""
    try:
        with _ending():
            return not agrees(name, module)
    except (Exception, EndlessError):
        return True


class EndlessError(BaseException):
    """Code that goes round for ever, told by no exception that the package could catch."""


@contextmanager
def _ending() -> Iterator[None]:
    """Raise an EndlessError after some seconds of the processor."""

    def end(*_: object) -> None:
        raise EndlessError

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def cases_by_line(names: Iterable[str]) -> Mapping[tuple[str, int], list[str]]:
    """Run cases, and return those that run each line of the package: its file and number."""
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name in names:
        for line in sorted(_lines_run(name)):
            found[line].append(name)
    return found


def _lines_run(name: str) -> set[tuple[str, int]]:
    case_of(name)
    found: set[tuple[str, int]] = set()
    start = len(str(PACKAGE)) + 1

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(str(PACKAGE)):
            return None
        file = name[start:]

        def step(frame: FrameType, event: str, _: Any) -> Any:
            found.add((file, frame.f_lineno))
            return step

        found.add((file, frame.f_lineno))
        return step

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        assert agrees(name, READS[0]), f"{name} differs before anything is changed"
    finally:
        sys.settrace(before)
    return found
